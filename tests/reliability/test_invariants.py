"""What must not change what is learned: how a step is cut into parts, processes, checkpointing, packing."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from combinations import Forks, Trial

from llamafarm.testing._tiny import build_model
from llamafarm.testing.rows import make_fields

pytestmark = pytest.mark.e2e

ROWS, STEPS = 12, 24
SAME_WEIGHTS = 1e-8
"""Loss of the first step, absolute: the same weights, so only how tokens are added up could tell. Measured: 9e-16."""

TRAINED_APART = 2e-7
"""Loss of each step, absolute: weights that were rounded otherwise drift apart. Measured: 3.7e-8 at most, on AVX-512,
AVX2 and without vector units; a loss summed in float32 could only change by 4.8e-7 at a time."""

DRIFT = 2e-8
"""Mean over all steps with the sign: an error to one side. Measured: 7.5e-9 at most."""

Losses = Callable[..., list[float]]
METHODS: dict[str, dict[str, Any]] = {"lora": {"type": "lora", "r": 4, "dropout": 0.0}, "full": {"type": "full"}}


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Losses]:
    """A function: method, processes, training → the loss of each step."""
    folder = tmp_path_factory.mktemp("invariants")
    build_model("llama", folder / "plain")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_fields(ROWS)))
    done: dict[str, list[float]] = {}

    def train(method: str, processes: int = 1, **training: Any) -> list[float]:
        options = {
            "max_steps": STEPS,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "max_seq_length": 64,
        }
        config = {
            "base_model": "plain",
            "dataset": "rows.jsonl",
            "method": METHODS[method],
            "training": options | training,
        }
        text = json.dumps({"name": "case", "fine_tuner": {"config": config}})
        key = f"{processes} {text}"
        if key not in done:
            (folder / "case.yaml").write_text(text)
            name = f"run-{len(done)}"
            code, said = trial.train(["-s", "case.yaml", "-o", name], processes)
            assert code == 0, said
            lines = (json.loads(line) for line in (folder / name / "trainer_log.jsonl").read_text().splitlines())
            done[key] = [line["loss"] for line in lines if "loss" in line]
            assert len(done[key]) == STEPS
        return done[key]

    with Forks(folder) as forks:
        trial = Trial(forks, folder)
        yield train


def require_same(one: list[float], other: list[float]) -> None:
    apart = [left - right for left, right in zip(one, other, strict=True)]
    assert abs(apart[0]) <= SAME_WEIGHTS, apart
    assert max(map(abs, apart)) <= TRAINED_APART, apart
    assert abs(statistics.fmean(apart)) <= DRIFT, apart


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "cut",
    [
        {"batch_size": 2, "gradient_accumulation_steps": 2},
        {"batch_size": 1, "gradient_accumulation_steps": 4},
        {"batch_size": 2, "processes": 2},
        {"batch_size": 4, "gradient_checkpointing": True},
    ],
    ids=["2 rows twice", "1 row four times", "2 rows in 2 processes", "checkpointing"],
)
def test_four_rows_are_a_step_however_they_are_computed(losses: Losses, method: str, cut: dict[str, Any]) -> None:
    require_same(losses(method, **cut), losses(method, batch_size=4))


@pytest.mark.parametrize("method", METHODS)
def test_packs_are_rows(losses: Losses, method: str) -> None:
    """All rows are in each step, so that packs cannot divide them otherwise."""
    rows = losses(method, batch_size=ROWS)
    require_same(losses(method, batch_size=ROWS, packing=True, packing_length=128), rows)


def test_other_rows_or_another_rate_would_be_noticed(losses: Losses) -> None:
    usual = losses("lora", batch_size=4)
    for other in ({"batch_size": 3}, {"batch_size": 4, "learning_rate": 1.01e-3}):
        with pytest.raises(AssertionError):
            require_same(losses("lora", **other), usual)
