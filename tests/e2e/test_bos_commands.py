"""Each command that docs/bos-scaling.md gives for one of the original experiment runs, in the order of the table."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from llamafarm.cli.guard import run as run_command
from llamafarm.testing.rows import make_fields

TABLE = (Path(__file__).parents[2] / "docs/bos-scaling.md").read_text(encoding="utf-8").split("| there | here |")[1]
COMMANDS = [
    match[1]
    for line in TABLE.splitlines()[2:]
    if line.startswith("|") and (match := re.match(r"`(.+?)`", line.split(" | ")[1])) and "Found" not in match[1]
]
# what a laptop without network has instead of Phi-3 and 1024 tokens; a part of an epoch is enough to see it work
SMALL = (
    ("microsoft/Phi-3-mini-4k-instruct", "tiny-phi3"),
    ("--seq-len 1024", "--seq-len 32"),
    ("train --strategy", "train --set training.num_epochs=0.6 --strategy"),
)


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_every_command_runs(tmp_path, monkeypatch, capsys, tiny_model_dir):
    (tmp_path / "tiny-phi3").symlink_to(tiny_model_dir("phi3"))
    rows = "".join(json.dumps(row) + "\n" for row in make_fields(40))
    (tmp_path / "data.jsonl").write_text(rows, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) >= 16
    for command in COMMANDS:
        small = command
        for before, after in SMALL:
            small = small.replace(before, after)
        if "phi3-bos " in small and "--model" not in small and "explain" not in small:
            small += " --set base_model=tiny-phi3"
        words = shlex.split(small)
        while "=" in words[0]:
            monkeypatch.setenv(*words.pop(0).split("=", 1))
        if words[0] == "llamafarm":  # in this process: a new one takes longer to import torch than to do the work
            code = run_command(words[1:])
        else:
            code = subprocess.run(words, stdout=subprocess.DEVNULL, check=False).returncode
        said = capsys.readouterr()
        assert code == 0, f"{command}\n{small}\n{said.out}{said.err}"
    run = tmp_path / "saves/phi3-bos-lora"
    tree = {path.name for path in run.iterdir()}
    documented = {"adapter_config.json", "adapter_model.safetensors", "bos_zero_config.json", "trainer_log.jsonl"}
    assert documented | {"training_loss.png"} <= tree
    checkpoint = {path.name for path in (run / "checkpoint-best").iterdir()}
    assert {"adapter_model.safetensors", "bos_zero_config.json", "trainer_state.json"} <= checkpoint
    row = json.loads((run / "trainer_log.jsonl").read_text().splitlines()[-1])
    assert row["percentage"] == 100
    base, tuned = (
        json.loads((tmp_path / f"phi3_{name}_matrices/capture_summary.json").read_text())
        for name in ("baseline", "bos_zero")
    )
    assert base["input_sha256"] == tuned["input_sha256"], "they can be compared"
