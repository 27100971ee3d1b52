"""The splitters that look at a column: exact in total, fair to each value, groups whole."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from hashlib import blake2b
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llamafarm.api import Row
from llamafarm.errors import DataError
from llamafarm_splitters.group import Group, GroupConfig, choose
from llamafarm_splitters.sequential import Sequential, SequentialConfig
from llamafarm_splitters.stratified import Stratified, StratifiedConfig, apportion

values = st.lists(st.sampled_from("abcdefg"), min_size=2, max_size=200)
percentages = st.integers(1, 50)


def rows(columns: list[dict[str, Any]]) -> list[Row]:
    return [
        Row(index, blake2b(json.dumps([index, fields]).encode(), digest_size=16).digest(), fields)
        for index, fields in enumerate(columns)
    ]


def of_values(found: str | list[str]) -> list[Row]:
    return rows([{"task": value} for value in found])


def stratified(**options: Any) -> Stratified:
    return Stratified(StratifiedConfig(**{"by": "task", **options}))


def group(**options: Any) -> Group:
    return Group(GroupConfig(**{"by": "task", **options}))


def sequential(**options: Any) -> Sequential:
    return Sequential(SequentialConfig(**options))


def exact(count: int, percentage: int) -> int:
    return min(max(int(count * Fraction(percentage, 100) + Fraction(1, 2)), 1), count - 1)


@given(values, percentages, st.integers(0, 5))
def test_stratified_is_exact_in_total_and_within_a_row_for_each_value(
    found: list[str], percentage: int, seed: int
) -> None:
    sides = stratified(eval_percentage=percentage, seed=seed).held_out(of_values(found))
    total = exact(len(found), percentage)
    assert sum(sides) == total
    held = Counter(value for value, side in zip(found, sides, strict=True) if side)
    for value, count in Counter(found).items():
        assert abs(held[value] - Fraction(count * total, len(found))) < 1


@given(values, st.randoms(), st.integers(0, 1000))
def test_stratified_depends_on_content_and_seed_alone(found: list[str], order: Any, seed: int) -> None:
    given_rows = of_values(found)
    shuffled = given_rows.copy()
    order.shuffle(shuffled)

    def held(some: list[Row]) -> set[bytes]:
        sides = stratified(seed=seed, eval_percentage=30).held_out(some)
        return {row.digest for row, side in zip(some, sides, strict=True) if side}

    assert held(shuffled) == held(given_rows)


def test_stratified_keeps_proportions() -> None:
    found = ["on"] * 60 + ["off"] * 30 + ["dim"] * 10
    sides = stratified(eval_percentage=10).held_out(of_values(found))
    held = Counter(value for value, side in zip(found, sides, strict=True) if side)
    assert held == {"on": 6, "off": 3, "dim": 1}


def test_another_seed_chooses_other_rows_of_the_same_values() -> None:
    found = of_values(["a"] * 50 + ["b"] * 50)
    first, second = (stratified(seed=seed).held_out(found) for seed in (1, 2))
    assert first != second
    assert sum(first[:50]) == sum(second[:50]) == 5


@pytest.mark.parametrize(
    ("sizes", "total", "expected"),
    [
        ((5, 5), 1, [1, 0]),
        ((3, 3, 3), 2, [1, 1, 0]),
        ((1, 9), 1, [0, 1]),
        ((2, 3), 5, [2, 3]),
        ((10, 20, 70), 11, [1, 2, 8]),
    ],
)
def test_apportion_gives_the_largest_remainders_more(sizes: tuple[int, ...], total: int, expected: list[int]) -> None:
    assert apportion(dict(enumerate(sizes)), total, [b"a", b"b", b"c"][: len(sizes)]) == expected


@given(values, percentages, st.integers(0, 5))
def test_group_never_cuts_a_group_and_leaves_no_side_empty(found: list[str], percentage: int, seed: int) -> None:
    splitter = group(eval_percentage=percentage, seed=seed)
    if len(set(found)) == 1:
        with pytest.raises(DataError, match=r"all rows have the same 'task'.*\[LF-DATA-061\]"):
            splitter.held_out(of_values(found))
        return
    sides = splitter.held_out(of_values(found))
    held = {value for value, side in zip(found, sides, strict=True) if side}
    trained = {value for value, side in zip(found, sides, strict=True) if not side}
    assert held
    assert trained
    assert not held & trained


def test_many_groups_come_near_to_the_share() -> None:
    found = [f"user {number % 97}" for number in range(2000)]
    assert 190 <= sum(group(eval_percentage=10).held_out(of_values(found))) <= 210


@pytest.mark.parametrize(
    ("sizes", "wanted", "expected"),
    [
        ([9, 1, 2], 3, {1, 2}),  # what does not fit is passed over
        ([9, 4], 3, {1}),  # nothing fits: the nearest
        ([5, 5, 10], 8, {0, 1}),  # one more where that is nearer
        ([5, 5, 10], 7, {0}),  # not where it is as far
        ([3, 4], 6, {0}),  # never all groups
    ],
)
def test_groups_are_chosen_greedily(sizes: list[int], wanted: int, expected: set[int]) -> None:
    assert choose(range(len(sizes)), dict(enumerate(sizes)), wanted) == expected


def test_another_seed_chooses_other_groups() -> None:
    found = of_values([str(number % 50) for number in range(500)])
    assert group(seed=1).held_out(found) != group(seed=2).held_out(found)


@given(st.integers(2, 500), percentages)
def test_sequential_holds_out_the_end(count: int, percentage: int) -> None:
    total = exact(count, percentage)
    sides = sequential(eval_percentage=percentage).held_out(of_values(["a"] * count))
    assert sides == [False] * (count - total) + [True] * total


def test_a_number_of_rows_can_be_given() -> None:
    found = of_values([str(number % 4) for number in range(20)])
    assert sum(stratified(eval_rows=7).held_out(found)) == 7
    assert sum(sequential(eval_rows=7).held_out(found)) == 7
    assert sum(group(eval_rows=10).held_out(found)) == 10
    for splitter in (stratified(eval_rows=20), sequential(eval_rows=20), group(eval_rows=20)):
        with pytest.raises(DataError, match=r"none is left to train on.*\[LF-DATA-025\]"):
            splitter.held_out(found)


def test_a_column_is_found_by_its_path() -> None:
    nested = rows([{"meta": {"source": "ab"[number % 2]}} for number in range(20)])
    flat = rows([{"meta.source": "ab"[number % 2]} for number in range(20)])
    for found in (nested, flat):
        sides = group(by="meta.source", eval_percentage=50).held_out(found)
        assert list(sides) in ([True, False] * 10, [False, True] * 10)


def test_values_of_any_type_are_told_apart() -> None:
    found = rows([{"task": value} for value in (1, "1", True, [1], {"a": 1})])
    assert sum(group(eval_percentage=20).held_out(found)) == 1


@pytest.mark.parametrize("splitter", [stratified(by="tsk"), group(by="tsk")])
def test_every_row_without_the_column_is_named(splitter: Stratified | Group) -> None:
    found = rows([{"tsk": "a"}, {"task": "b"}, {"tsk": "c"}, {"tsk": None, "task": "d"}])
    expected = r"row 2 has no 'tsk' to split by; did you mean 'task'\? \[LF-DATA-060\]\nrow 4 has no 'tsk'"
    with pytest.raises(DataError, match=expected):
        splitter.held_out(found)


def test_a_way_that_leads_nowhere_is_said() -> None:
    with pytest.raises(DataError, match=r"row 1 has no 'task\.x' to split by.*\n.*row 2"):
        group(by="task.x").held_out(of_values("ab"))


@pytest.mark.parametrize("config", [StratifiedConfig, GroupConfig])
@pytest.mark.parametrize("options", [{}, {"by": ""}, {"by": 3}, {"by": "a", "seed": -1}, {"by": "a", "eval_rows": 0}])
def test_options_are_checked(config: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(**options)


def test_columns_are_named_where_none_is_like_it() -> None:
    with pytest.raises(DataError, match=r"row 1 has no 'home' to split by; columns there: 'task'"):
        stratified(by="home").held_out(of_values("ab"))
