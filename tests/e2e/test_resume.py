"""A run that was stopped and goes on ends as one that never was: the same weights, losses and logs, to the last bit."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from llamafarm.api import ResumePoint
from llamafarm.testing.run_context import RecordingRun

pytestmark = pytest.mark.e2e

TIMES = ("throughput", "elapsed_time", "remaining_time", "peak_memory")


def stopping(step: int) -> type[RecordingRun]:
    """A run in which somebody asks to stop while that step is taken."""

    class Stopping(RecordingRun):
        def emit(self, type: str, /, **fields: Any) -> None:  # noqa: A002
            super().emit(type, **fields)
            self.stop_requested = self.stop_requested or (type == "log" and fields["step"] >= step)

    return Stopping


def weights(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest()
        for file in sorted([*folder.glob("*.safetensors"), *folder.glob("checkpoint-*/*.safetensors")])
    }


def log(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "trainer_state.json").read_text())


CASES: dict[str, dict[str, Any]] = {
    "lora-dropout": {"method": "lora", "options": {"dropout": 0.2}},
    "full": {"method": "full", "learning_rate": 1e-3},
    "accumulation": {"gradient_accumulation_steps": 3, "batch_size": 2, "options": {"dropout": 0.1}},
    "packing": {"packing": True, "packing_length": 128, "max_seq_length": 64, "batch_size": 1},
    "curriculum": {"curriculum": {"by": "words"}},
    "by-length": {"group_by_length": True},
    "checkpointing-cosine": {"gradient_checkpointing": True, "lr_scheduler_type": "cosine", "warmup_steps": 3},
    "sgd": {"optim": "sgd"},
    "evaluation": {"held_out": 6, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True},
    "worse-and-worse": {
        "held_out": 6,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "greater_is_better": True,
        "load_best_model_at_end": True,
        "early_stopping": True,
        "early_stopping_patience": 7,
    },
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stop", [4, 7])
def test_a_resumed_run_is_bit_identical(fit, case, stop):
    options = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 2, "logging_steps": 1} | CASES[case]
    straight = fit(**options)
    folder = fit.root / "stopped"
    with pytest.raises(KeyboardInterrupt):
        fit(folder=folder, run=stopping(stop), **options)
    assert (folder / f"checkpoint-{stop}").is_dir()
    resumed = fit(folder=folder, resume=ResumePoint(), **options)
    (event,) = resumed.events("resumed")
    assert event == {"step": stop, "exact": True, "reasons": []}
    whole, now = weights(straight.folder), weights(resumed.folder)
    assert {name: now[name] for name in whole if name in now} == {name: whole[name] for name in whole if name in now}
    assert {name for name in whole if "/" not in name} <= set(now)
    assert log(resumed.folder) == log(straight.folder)
    assert state(resumed.folder)["log_history"] == state(straight.folder)["log_history"]
    for name in ("train_loss", "train_tokens", "train_steps", "eval_loss"):
        assert resumed.result.metrics.get(name) == straight.result.metrics.get(name), name
    assert resumed.result.best_step == straight.result.best_step


def test_other_rngs_would_be_noticed(fit, monkeypatch):
    """The comparison can fail: without the generators' state, dropout draws other masks."""
    from llamafarm_tuners.pytorch import _state

    options = {"options": {"dropout": 0.2}, "save_strategy": "no"}
    straight = fit(**options)
    folder = fit.root / "stopped"
    with pytest.raises(KeyboardInterrupt):
        fit(folder=folder, run=stopping(4), **options)
    monkeypatch.setattr(_state, "set_random_state", lambda *_: None)
    resumed = fit(folder=folder, resume=ResumePoint(), **options)
    assert weights(resumed.folder) != weights(straight.folder)
