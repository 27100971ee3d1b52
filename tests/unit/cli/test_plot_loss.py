from __future__ import annotations

import json

import pytest


def test_a_log_is_drawn(cli, tmp_path):
    (tmp_path / "run").mkdir()
    lines = [
        {"current_steps": 1, "loss": 3.0},
        {"current_steps": 2, "loss": 2.0},
        {"current_steps": 2, "eval_loss": 2.5},
    ]
    (tmp_path / "run" / "trainer_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = cli("plot-loss", "run")
    assert (ended.code, ended.out) == (0, "run/training_loss.png\n")
    assert (tmp_path / "run" / "training_loss.png").read_bytes().startswith(b"\x89PNG")
    assert cli("plot-loss", "run", "--key", "loss", "-o", "other.png").code == 0
    assert cli("plot-loss", "run", "-o", "bare").code == 0
    assert (tmp_path / "bare").read_bytes().startswith(b"\x89PNG")
    wrong = cli("plot-loss", "run", "-o", "rows.jsonl")
    assert wrong.code == 2
    assert "error: rows.jsonl: no kind of picture ends in '.jsonl'; known: " in wrong.err
    assert "LF-USAGE-041" in wrong.err
    refused = cli("plot-loss", "run", "--key", "loss", "--key", "reward")
    assert refused.code == 3
    assert "no reward" in refused.err


@pytest.mark.parametrize(("run", "code"), [((), 2), (("none",), 3)])
def test_what_is_no_run_is_refused(cli, run, code):
    assert cli("plot-loss", *run).code == code


def test_a_damaged_log_is_refused(cli, tmp_path):
    (tmp_path / "trainer_log.jsonl").write_text("[1]\n")
    ended = cli("plot-loss", ".")
    assert ended.code == 3
    assert "LF-DATA-223" in ended.err
