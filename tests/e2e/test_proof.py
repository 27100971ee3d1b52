"""`verify-resume` and `runs`, on a tiny model."""

from __future__ import annotations

import json

import pytest

from llamafarm.cli.guard import run as main
from llamafarm.testing.rows import make_fields

pytestmark = pytest.mark.e2e


@pytest.fixture
def strategy(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_fields(24)))
    config = {
        "base_model": str(tiny_model_dir("llama")),
        "dataset": "rows.jsonl",
        "method": {"type": "lora", "r": 4, "dropout": 0.2},
        "training": {"max_steps": 4, "batch_size": 2, "logging_steps": 1, "save_steps": 2, "max_seq_length": 64},
    }
    (tmp_path / "strategy.yaml").write_text(json.dumps({"name": "small", "fine_tuner": {"config": config}}))
    return "strategy.yaml"


def test_resuming_is_proved(strategy, tmp_path, capsys):
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["verify-resume", strategy]) == 0
    assert "6 steps straight, and 3 + 3 steps resumed end in the same weights" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert main(["verify-resume", strategy, "--json", "--steps", "4"]) == 0
    assert json.loads(capsys.readouterr().out) == {"exact": True, "steps": 4, "stopped_at": 2, "differences": []}


def test_the_proof_can_fail(strategy, monkeypatch, capsys):
    from llamafarm_tuners.pytorch import _state

    monkeypatch.setattr(_state, "set_random_state", lambda *_: None)
    assert main(["verify-resume", strategy]) == 12
    said = capsys.readouterr().err
    assert "resuming is not exact: step 4, " in said
    assert "[LF-QUALITY-050]" in said


def test_runs_are_listed_shown_and_compared(strategy, tmp_path, capsys):
    assert main(["runs"]) == 0
    assert capsys.readouterr().err == "no run in .\n"
    for name, more in (("a", []), ("b", []), ("c", ["--seed", "7"])):
        assert main(["train", "-s", strategy, "-o", name, "--quiet", *more]) == 0
    damaged = tmp_path / "a" / "checkpoint-2" / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    capsys.readouterr()
    assert main(["runs", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert sorted((run["folder"], run["status"], run["step"]) for run in listed) == [
        (name, "completed", 4) for name in "abc"
    ]
    assert main(["runs", "show", "a", "--json"]) == 0
    kept = {entry["name"]: entry["damage"] for entry in json.loads(capsys.readouterr().out)["checkpoints"]}
    assert kept.keys() == {"checkpoint-2", "checkpoint-4", "checkpoint-best"}
    assert kept["checkpoint-4"] is None
    assert kept["checkpoint-2"].startswith("optimizer.safetensors has ")
    assert main(["runs", "diff", "a", "b"]) == 0
    assert capsys.readouterr().out.startswith("the same: ")
    assert main(["runs", "diff", "a", "c", "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)
    assert (parts[0]["kind"], parts[0]["subject"], parts[0]["a"], parts[0]["b"]) == (
        "configuration", "training.seed", 42, 7,
    )  # fmt: skip
    assert [part["kind"] for part in parts[1:]] == ["step", "weights"]
    assert main(["runs"]) == 0
    assert main(["runs", "show", "last"]) == 0
    assert main(["runs", "diff", "a", "nowhere"]) == 9


def test_a_resume_that_was_stopped_while_it_loaded_is_told_so(strategy, tmp_path, capsys):
    assert main(["train", "-s", strategy, "-o", "a", "--quiet"]) == 0
    manifest = tmp_path / "a" / "llamafarm" / "manifest.json"
    resumed = [{"at": "2026-01-02"}, {"at": "2026-01-03", "step": 2, "exact": True}]
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"resumed": resumed}))
    capsys.readouterr()
    assert main(["runs", "show", "a"]) == 0
    told = capsys.readouterr().out
    assert "before its first step, 2026-01-02" in told
    assert "at step 2, 2026-01-03" in told


def test_a_run_is_reproduced_or_the_first_difference_is_named(strategy, tmp_path, capsys):
    assert main(["train", "-s", strategy, "-o", "a", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["reproduce", "a"]) == 0
    assert "exact: a-reproduced has the same losses and weights" in capsys.readouterr().out
    assert main(["runs", "diff", "a", "a-reproduced"]) == 0
    assert capsys.readouterr().out.startswith("the same: ")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text().replace("e", "E", 1))
    assert main(["reproduce", "a", "-o", "other", "--json"]) == 12
    said = capsys.readouterr()
    assert "[LF-QUALITY-051]" in said.err
    assert "data: digest of the rows and their order was" in said.err
    found = json.loads(said.out)
    assert (found["exact"], found["folder"], found["differences"][0]["kind"]) == (False, "other", "data")
    facts = tmp_path / "a" / "llamafarm" / "manifest.json"
    facts.write_text(facts.read_text().replace('"completed"', '"interrupted"'))
    assert main(["reproduce", "a", "-o", "third"]) == 9
    assert "[LF-RUN-015]" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()
