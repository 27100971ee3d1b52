from __future__ import annotations

import json
import os

import pytest

from llamafarm.api import TrainingConfig
from llamafarm.errors import DiskError
from llamafarm.testing.fresh import fresh
from llamafarm_tuners.pytorch.best import BestSoFar
from llamafarm_tuners.pytorch.journal import Journal, trainer_state, write_json
from llamafarm_tuners.pytorch.meters import clock
from llamafarm_tuners.pytorch.schedule import plan_sizes


def test_each_line_is_on_disk_at_once(tmp_path):
    journal = Journal(tmp_path, 10)
    path = tmp_path / "trainer_log.jsonl"
    for step in (1, 2, 3):
        journal.log(step, step / 10, 5.0, 45.0, loss=2.5, lr=1e-3, eval_loss=None)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(lines) == step
    assert lines[-1] == {
        "current_steps": 3,
        "total_steps": 10,
        "loss": 2.5,
        "lr": 1e-3,
        "epoch": 0.3,
        "percentage": 30.0,
        "elapsed_time": "0:00:05",
        "remaining_time": "0:00:45",
    }


def test_the_last_line_is_at_100_percent_even_if_stopped_early(tmp_path):
    journal = Journal(tmp_path, 10)
    journal.finish(4, 0.4, 1.0)
    last = json.loads((tmp_path / "trainer_log.jsonl").read_text().splitlines()[-1])
    assert (last["percentage"], last["current_steps"], last["total_steps"]) == (100.0, 4, 4)


def test_a_journal_without_a_folder_writes_nothing(tmp_path):
    Journal(None, 10).log(1, 0.1, 1.0, 1.0, loss=1.0)
    assert list(tmp_path.iterdir()) == []


def test_json_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


def test_the_state_has_what_other_tools_read():
    training = TrainingConfig(num_epochs=2, batch_size=4)
    best = BestSoFar(training)
    best.update(3, {"eval_loss": 0.5})
    state = trainer_state(3, plan_sizes(12, training), training, best, [{"step": 3, "loss": 1.0}])
    assert state["global_step"] == 3
    assert state["max_steps"] == 6
    assert state["epoch"] == 1.0
    assert state["num_train_epochs"] == 2
    assert (state["best_metric"], state["best_global_step"], state["best_model_checkpoint"]) == (
        0.5,
        3,
        "checkpoint-best",
    )
    assert state["log_history"] == [{"step": 3, "loss": 1.0}]
    json.dumps(state)


def test_clocks():
    assert clock(3723.4) == "1:02:03"


def test_the_peak_stays_after_the_memory_is_gone():
    code = (
        "from llamafarm_tuners.pytorch.meters import peak_resident_bytes as peak\n"
        "before = peak(); block = bytearray(10**8); del block; answer = peak() - before"
    )
    assert 0.9e8 < fresh(code) < 1.5e8


def test_a_disk_that_refuses_is_an_error_of_ours(tmp_path):
    journal = Journal(tmp_path, 10)
    (tmp_path / "trainer_log.jsonl").unlink()
    (tmp_path / "trainer_log.jsonl").mkdir()
    journal.log(1, 0.1, 1.0, 1.0)
    assert journal.failure, "training goes on"
    with pytest.raises(DiskError, match="LF-DISK-010"):
        journal.finish(2, 0.2, 1.0)


def test_lines_that_the_disk_refused_for_a_while_are_not_lost(tmp_path):
    journal = Journal(tmp_path, 10)
    path = tmp_path / "trainer_log.jsonl"
    journal.log(1, 0.1, 1.0, 1.0)
    path.unlink()
    path.mkdir()
    journal.log(2, 0.2, 1.0, 1.0)
    path.rmdir()
    journal.log(3, 0.3, 1.0, 1.0)
    assert journal.failure is None
    assert [json.loads(line)["current_steps"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_a_resumed_journal_holds_the_lines_of_its_state_and_no_others(tmp_path):
    journal = Journal(tmp_path, 10)
    journal.log(1, 0.1, 1.0, 1.0)
    state = journal.state_dict()
    journal.log(2, 0.2, 1.0, 1.0)
    again = Journal(tmp_path, 10)
    again.load_state_dict(state)
    again.log(2, 0.2, 1.0, 1.0)
    lines = (tmp_path / "trainer_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["current_steps"] for line in lines] == [1, 2]


def test_a_finished_log_is_on_the_disk_itself(tmp_path, monkeypatch):
    journal, synced = Journal(tmp_path, 2), []
    journal.log(1, 0.5, 1.0, 1.0)
    monkeypatch.setattr("llamafarm.files.os.fsync", lambda file: synced.append(os.fstat(file).st_ino))
    journal.finish(2, 1.0, 2.0)
    assert synced == [path.stat().st_ino for path in (tmp_path / "trainer_log.jsonl", tmp_path)]
