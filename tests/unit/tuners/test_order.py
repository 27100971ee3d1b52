"""The order of rows: every row once an epoch; easy ones first where a curriculum says so; seeds kept apart."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.api import CurriculumConfig, Example, Message, RowRef
from llamafarm.data.fit import TokenizedRow
from llamafarm.errors import Problem
from llamafarm_tuners.pytorch._batches import epoch_order, micro_batches
from llamafarm_tuners.pytorch.checks import check
from llamafarm_tuners.pytorch.curriculum import difficulty

hardness = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=60)


@given(hardness, st.integers(0, 3), st.integers(0, 4), st.integers(1, 4), st.integers(1, 3))
def test_a_curriculum_survives_to_the_batches_of_every_epoch_and_process(
    hard: list[float], seed: int, epoch: int, size: int, world: int
) -> None:
    order = epoch_order([1] * len(hard), seed, epoch, size * world, difficulty=hard)
    assert sorted(order) == list(range(len(hard)))
    shares = [micro_batches(order, size, rank, world) for rank in range(world)]
    steps = [[row for share in shares for row in share[step]] for step in range(len(shares[0]))]
    for earlier, later in pairwise(steps):
        assert max(hard[row] for row in earlier) <= min(hard[row] for row in later)


def test_equally_hard_rows_are_shuffled_by_seed_and_epoch() -> None:
    orders = {
        tuple(epoch_order([1] * 50, seed, epoch, 4, difficulty=[0.0] * 50)) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(orders) == 4


def example(text: str, hard: float | None = None) -> Example:
    return Example(RowRef("rows.jsonl", 1), (Message("user", "a b"), Message("assistant", text)), difficulty=hard)


def test_what_makes_a_row_hard() -> None:
    examples = [example("one", 5.0), example("one two  three", 0.5)]
    rows = [TokenizedRow([1, 2], [1, 2], example=1), TokenizedRow([1, 2, 3], [1, 2, 3], example=0)]
    found = {by: difficulty(CurriculumConfig(by=by), rows, examples) for by in ("words", "tokens", "level")}
    assert found == {"words": [5.0, 3.0], "tokens": [2.0, 3.0], "level": [0.5, 5.0]}
    assert difficulty(None, rows, examples) is None


@pytest.mark.parametrize("other", ["group_by_length", "packing"])
def test_another_order_is_refused(make, other) -> None:
    config, plan = make({"training": {"curriculum": {"by": "words"}, other: True}})
    problems = [item for item in check(config, plan) if isinstance(item, Problem)]
    assert [item.id for item in problems] == ["LF-TRAIN-017"]
    assert other in problems[0].message
