"""Figures of each task."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from llamafarm.api import TrainingConfig
from llamafarm.errors import StrategyError
from llamafarm_tuners.pytorch.best import BestSoFar
from llamafarm_tuners.pytorch.checks import check
from llamafarm_tuners.pytorch.tasks import by_task, require_metric


@dataclass
class Row:
    labels: list[int]
    loss: float


ROWS = [Row([-100, 5, 6], 1.0), Row([7, 8], 4.0), Row([-100, 3, 4, 5], 2.0), Row([-100, 9], 0.5)]
TASKS = ["A", "B", "A", None]


def measure(rows):
    """Mean loss over targets; a target is any label but the first."""
    counts = [sum(label != -100 for label in row.labels[1:]) for row in rows]
    loss = sum(row.loss * count for row, count in zip(rows, counts, strict=True)) / sum(counts)
    return {"eval_loss": loss, "eval_perplexity": math.exp(loss)}


def test_tasks_are_measured_apart_and_together():
    found = by_task(measure, ROWS, TASKS)
    assert found["eval_loss_A"] == pytest.approx((1.0 * 2 + 2.0 * 3) / 5, rel=1e-12)
    assert found["eval_loss_B"] == 4.0
    together = measure(ROWS)
    # the same sum in another order: double precision
    assert found["eval_loss"] == pytest.approx(together["eval_loss"], rel=1e-12)
    assert found["eval_perplexity"] == pytest.approx(together["eval_perplexity"], rel=1e-12)
    assert set(found) == {f"{name}{task}" for name in together for task in ("", "_A", "_B")}


def test_without_tasks_nothing_is_added():
    assert by_task(measure, ROWS, [None] * 4) == measure(ROWS)


def test_the_metric_of_a_task_decides(make):
    sources = [{"path": "a.jsonl", "task": "A"}, {"path": "b.jsonl", "task": "B"}]

    def found(metric, **training):
        training = {"metric_for_best_model": metric, "eval_strategy": "epoch", **training}
        config, plan = make({"dataset": {"sources": sources}, "training": training})
        return [item.id for item in check(config, plan) if hasattr(item, "id")]

    assert found("loss_A") == found("eval_loss_B") == []
    assert found("eval_loss_C") == ["LF-TRAIN-013"]
    assert found("token_accuracy_A") == ["LF-TRAIN-014"]
    assert found("token_accuracy_A", compute_metrics=True) == []


def test_the_metric_of_a_task_without_held_out_rows_is_refused():
    training = TrainingConfig(metric_for_best_model="loss_B")
    require_metric(training, ["A", "B"], "")
    with pytest.raises(StrategyError, match=r"no row of that task is held out; there are 'A'.*LF-TRAIN-020"):
        require_metric(training, ["A", None], "")
    with pytest.raises(StrategyError, match=r"the held-out rows name no task.*LF-TRAIN-020"):
        require_metric(training, [None], "")


def test_accuracy_is_better_when_greater_whatever_the_task_is_called():
    accuracy = BestSoFar(TrainingConfig(metric_for_best_model="token_accuracy_A"))
    assert [accuracy.update(n, {"eval_token_accuracy_A": value}) for n, value in enumerate((0.1, 0.3, 0.2))] == [
        True,
        True,
        False,
    ]
    loss = BestSoFar(TrainingConfig(metric_for_best_model="eval_loss_accuracy"))
    assert [loss.update(n, {"eval_loss_accuracy": value}) for n, value in enumerate((0.3, 0.4))] == [True, False]
