"""The commands of the training guide, as it spells them, with a dataset and base models that exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llamafarm.testing._tiny import build_model

pytestmark = pytest.mark.e2e
LLAMA_2 = "meta-llama/Llama-2-7b-hf"
TINYLLAMA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"


@pytest.fixture(scope="module")
def project(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with data, and a hub cache in which the guide's models are (tiny ones of their kind)."""
    folder = tmp_path_factory.mktemp("guide")
    rows = [{"instruction": f"What follows {n}?", "output": f"After {n} comes {n + 1}."} for n in range(60)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("your_data.jsonl", "data.jsonl"):
        (folder / name).write_text(text, encoding="utf-8")
    for name in (LLAMA_2, TINYLLAMA):
        cached = folder / "hub" / f"models--{name.replace('/', '--')}"
        revision = "0" * 40
        build_model("llama", cached / "snapshots" / revision)
        (cached / "refs").mkdir()
        (cached / "refs/main").write_text(revision, encoding="ascii")
    return folder


@pytest.fixture(scope="module")
def guide(root: Path, project: Path):
    """Run `python cli.py …` in the project, offline."""

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "HF_HUB_CACHE": str(project / "hub"), "LLAMAFARM_HOME": str(project / "home")}
        command = [sys.executable, str(root / "cli.py"), *arguments]
        done = subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


def test_quick_start_with_a_strategy(guide, project):
    guide("train", "--strategy", "demo3_training", "--dataset", "your_data.jsonl", "--epochs", "3")
    output = project / "output"
    for name in ("adapter_model.safetensors", "adapter_config.json", "checkpoint-best", "runs", "trainer_log.jsonl"):
        assert (output / name).exists(), name
    manifest = json.loads((output / "llamafarm/manifest.json").read_text())
    assert (manifest["base_model"], manifest["metrics"]["epoch"]) == (TINYLLAMA, 3.0)


def test_tensorboard_reads_the_documented_folder(project):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(project / "output/runs"))
    events.Reload()
    assert len(events.Scalars("train/loss")) > 1


def test_generate_with_the_best_checkpoint(guide):
    arguments = ("generate", "--model", "./output/checkpoint-best", "--prompt", "Your test prompt", "--max-tokens", "8")
    assert guide(*arguments).stdout == guide(*arguments).stdout


def test_data_splitting(guide, project):
    guide(
        "datasplit", "--input", "data.jsonl", "--train-output", "train.jsonl", "--eval-output", "eval.jsonl",
        "--eval-percentage", "10",
    )  # fmt: skip
    train, held_out = ((project / name).read_text().splitlines() for name in ("train.jsonl", "eval.jsonl"))
    assert len(train) + len(held_out) == 60
    assert not {*train} & {*held_out}


def test_finetune_start(guide, project):
    guide("datasplit", "data.jsonl", "--train-output", "train.jsonl", "--eval-output", "eval.jsonl", "--overwrite")
    arguments = ("finetune", "start", "--model", LLAMA_2, "--dataset", "train.jsonl", "--method", "lora")
    guide(*arguments, "--output", "started")
    config = json.loads((project / "started/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == LLAMA_2


def test_both_spellings_resolve_to_the_same_run(guide):
    shared = ("--model", LLAMA_2, "--dataset", "data.jsonl", "--epochs", "1", "--output", "elsewhere", "--dry-run")
    strategy = ("--strategy", "demo3_training")
    shown = [guide(*spelling, *strategy, *shared).stdout for spelling in (["train"], ["finetune", "start"])]
    one, other = (re.sub(r"[\d.]+ GiB", "… GiB", text) for text in shown)  # what is free changes meanwhile
    assert one == other


def test_a_model_that_is_not_here_is_a_clear_error_offline(guide):
    done = guide(
        "finetune", "start", "--model", "meta-llama/Llama-3-8B", "--dataset", "data.jsonl", "-o", "none", code=11
    )
    assert "meta-llama/Llama-3-8B" in done.stderr
