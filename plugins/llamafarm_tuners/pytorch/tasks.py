"""Figures of each task apart, where a dataset has several. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from llamafarm.api import DatasetConfig, Example, TrainingConfig
from llamafarm.data.fit import IGNORED, TokenizedRow
from llamafarm.errors import StrategyError, one_of
from llamafarm_tuners.pytorch.best import METRICS, full_name


class Labelled(Protocol):
    """A tokenized row, as far as it matters here."""

    @property
    def labels(self) -> Sequence[int]: ...


RowT = TypeVar("RowT", bound=Labelled)


def tasks_of(rows: Sequence[TokenizedRow], examples: Sequence[Example]) -> list[str | None]:
    """The task of each row."""
    return [examples[row.example].task for row in rows]


def metric_names(dataset: DatasetConfig) -> list[str]:
    """All metrics that an evaluation of this dataset can yield: `eval_loss`, `eval_loss_<task>` and so on."""
    tasks = dict.fromkeys(source.task for source in dataset.sources or () if source.task)
    return [*METRICS, *(f"{metric}_{task}" for task in tasks for metric in METRICS)]


def require_metric(training: TrainingConfig, tasks: Sequence[str | None], where: str) -> None:
    """Check that the metric which decides is measured, if it is that of a task.

    Raises:
        StrategyError: If no row of that task is held out.
    """
    metric = full_name(training.metric_for_best_model)
    there = [task for task in dict.fromkeys(tasks) if task is not None]
    if not tasks or metric in METRICS or any(metric == f"{name}_{task}" for name in METRICS for task in there):
        return
    raise StrategyError.of(
        "LF-TRAIN-020",
        f"metric_for_best_model {metric}: no row of that task is held out; there are {one_of(there)}"
        if there
        else f"metric_for_best_model {metric}: the held-out rows name no task",
        where=where,
        hint="hold out rows of each task: data_splitter stratified, or a larger share; rows of eval_path have no task",
    )


def by_task(
    measure: Callable[[Sequence[RowT]], dict[str, float]], rows: Sequence[RowT], tasks: Sequence[str | None]
) -> dict[str, float]:
    """Measure each task apart, and all rows together.

    Args:
        measure: Mean loss per target over rows (`eval_loss`), and maybe more.
        rows: All held-out rows.
        tasks: The task of each.

    Returns:
        What `measure` yields for all rows, each target weighing the same, and the same of every task as
        `<metric>_<task>`.
    """
    groups: dict[str | None, list[RowT]] = {}
    for row, task in zip(rows, tasks, strict=True):
        groups.setdefault(task, []).append(row)
    if set(groups) <= {None}:
        return measure(rows)
    found = {task: measure(group) for task, group in groups.items()}
    metrics = _together([(found[task], _targets(group)) for task, group in groups.items()])
    for task, figures in found.items():
        if task is not None:
            metrics |= {f"{name}_{task}": value for name, value in figures.items()}
    return metrics


def _together(parts: Sequence[tuple[Mapping[str, float], int]]) -> dict[str, float]:
    """Means over all targets from means over some; a perplexity follows from its loss."""
    total = sum(count for _, count in parts)
    means = {name: math.fsum(figures[name] * count for figures, count in parts) / total for name in parts[0][0]}
    if "eval_perplexity" in means:
        means["eval_perplexity"] = math.exp(min(means["eval_loss"], 700.0))
    return means


def _targets(rows: Sequence[Labelled]) -> int:
    """Labels that count: the first token of a row is nobody's next."""
    return sum(label != IGNORED for row in rows for label in row.labels[1:])
