"""How hard each row is, for a curriculum. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llamafarm.api import CurriculumConfig, Decision, Example, RunPlan
from llamafarm.data.fit import TokenizedRow
from llamafarm.data.stored import lengths_of
from llamafarm.errors import Problem
from llamafarm_tuners.pytorch.config import PytorchConfig


def difficulty(
    curriculum: CurriculumConfig | None, rows: Sequence[TokenizedRow], examples: Sequence[Example]
) -> list[float] | None:
    """A number for each row, the larger the harder; None without a curriculum."""
    if curriculum is None:
        return None
    if curriculum.by == "tokens":
        return [float(length) for length in lengths_of(rows)]
    measure = _words if curriculum.by == "words" else _column
    return [measure(examples[row.example]) for row in rows]


def _words(example: Example) -> float:
    texts = [example.text or "", *(message.content for message in example.messages)]
    return float(sum(len(text.split()) for text in texts))


def _column(example: Example) -> float:
    assert example.difficulty is not None, "the host reads the column of the curriculum"
    return example.difficulty


def check_curriculum(config: PytorchConfig, plan: RunPlan) -> Iterator[Problem | Decision]:
    """Refuse what would order the rows in another way."""
    training = config.training
    if training.curriculum is None:
        return
    for name, on in (("group_by_length", training.group_by_length), ("packing", training.packing)):
        if on:
            where = plan.given.get("training.curriculum.by", plan.given.get(f"training.{name}", ""))
            message = f"training.curriculum and training.{name} exclude each other"
            yield Problem("LF-TRAIN-017", message, where, f"set training.{name}: false, or leave the curriculum out")
