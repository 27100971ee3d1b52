"""Surroundings that are not what they should be: a locale without UTF-8, places where nothing can be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamafarm.cli.guard import run as main
from llamafarm.testing.rows import make_fields

pytestmark = pytest.mark.e2e

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def folder(tiny_model_dir, tmp_path) -> Path:
    place = tmp_path / "größe"
    place.mkdir()
    rows = [row | {"output": f"žluťoučký {row['output']}"} for row in make_fields(12)]
    (place / "řádky.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    config = {
        "base_model": str(tiny_model_dir("llama")),
        "dataset": "řádky.jsonl",
        "method": {"type": "lora", "r": 2},
        "training": {"max_steps": 2, "batch_size": 2, "save_steps": 1, "max_seq_length": 64, "report_to": ["none"]},
    }
    text = json.dumps({"name": "short", "fine_tuner": {"config": config}}, ensure_ascii=False)
    (place / "strategy.yaml").write_text(text, "utf-8")
    return place


def run(folder: Path, *argv: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMAFARM", "LANG", "LC_"))}
    environment = kept | {"LLAMAFARM_HOME": str(folder / ".home")} | ASCII
    program = [sys.executable, "-m", "llamafarm", *argv]
    return subprocess.run(program, cwd=folder, env=environment, capture_output=True, check=False, timeout=250)


def test_a_locale_without_utf_8_changes_nothing(folder):
    trained = run(folder, "train", "-s", "strategy.yaml", "-o", "výstup")
    assert trained.returncode == 0, trained.stderr
    assert b"Traceback" not in trained.stderr
    log = (folder / "výstup" / "trainer_log.jsonl").read_text("utf-8").splitlines()
    assert json.loads(log[-1])["current_steps"] == 2
    split = run(folder, "datasplit", "řádky.jsonl")
    assert split.returncode == 0, split.stderr
    text = "".join((folder / f"řádky_{part}.jsonl").read_text("utf-8") for part in ("train", "eval"))
    assert [json.loads(line)["output"][:9] for line in text.splitlines()] == ["žluťoučký"] * 12


@pytest.mark.parametrize("place", ["/proc/nowhere/run", "strategy.yaml", "strategy.yaml/run"])
def test_where_nothing_can_be_written_is_said_at_once(folder, place, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    code = main(["train", "-s", "strategy.yaml", "-o", place])
    said = capsys.readouterr().err
    assert (code, "Traceback" in said) == (9 if place == "strategy.yaml" else 7, False), said
    assert place.partition("/run")[0] in said
    assert "LF-RUN-001" in said or "LF-DISK-001" in said
    assert "loading model" not in said
