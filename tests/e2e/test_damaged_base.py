"""A base model with a weight that is not a number: every command says so, and names the weight."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from llamafarm.cli.guard import run as main
from llamafarm.testing.rows import make_fields

pytestmark = pytest.mark.e2e

WEIGHT = "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture
def damaged(tiny_model_dir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_fields(8)))
    shutil.copytree(tiny_model_dir("llama"), tmp_path / "base")
    tensors = load_file("base/model.safetensors")
    tensors[WEIGHT].view(-1)[5] = math.nan
    save_file(tensors, "base/model.safetensors", {"format": "pt"})
    return tmp_path


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_stops_at_its_first_step_which_is_kept(damaged, capsys, method):
    sets = ["training.max_steps=2", "training.batch_size=2", f"method={method}", "training.max_seq_length=64"]
    flags = [word for item in sets for word in ("--set", item)]
    assert main(["train", "--model", "base", "--dataset", "rows.jsonl", "-o", "run", *flags]) == 6
    said = capsys.readouterr().err
    assert f"{WEIGHT} of the base model itself is not finite; fetch the base model again" in said
    assert "LF-NUMERIC-001" in said
    assert "learning_rate" not in said.splitlines()[-1]
    assert "step 1 is kept in broken-step-1" in said
    assert main(["replay-step", "run", "1"]) == 6
    assert "LF-NUMERIC-013" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--model", "base", "--prompt", "hello", "--max-tokens", "3"],
        ["generate", "--model", "base", "--prompt", "hello", "--max-tokens", "3", "--temperature", "1"],
        ["evaluate", "--model", "base", "--dataset", "rows.jsonl", "--metrics", "loss"],
        ["evaluate", "--model", "base", "--dataset", "rows.jsonl", "--metrics", "exact_match"],
    ],
    ids=["likeliest", "drawn", "loss", "answers"],
)
def test_nothing_is_made_of_it(damaged, capsys, command):
    assert main(command) == 6
    out, said = capsys.readouterr()
    assert out == ""
    assert "is not finite" in said
    assert WEIGHT in said
    assert "LF-NUMERIC-003" in said
