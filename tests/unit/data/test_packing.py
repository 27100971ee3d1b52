"""Packs hold every row once, whole, and give it back as it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.data.fit import TokenizedRow
from llamafarm.data.packing import best_fit, join, pack, unpack

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=120)


@given(lengths, st.integers(1, 60), st.integers(0, 3))
def test_every_row_is_in_one_pack_and_packs_are_not_too_long(sizes: list[int], capacity: int, seed: int) -> None:
    packs = best_fit(sizes, capacity, seed)
    assert sorted(index for chosen in packs for index in chosen) == list(range(len(sizes)))
    assert all(len(chosen) == 1 or sum(sizes[index] for index in chosen) <= capacity for chosen in packs)
    assert packs == best_fit(sizes, capacity, seed)


@given(lengths, st.integers(40, 80))
def test_at_most_one_pack_is_half_empty(sizes: list[int], capacity: int) -> None:
    used = [sum(sizes[index] for index in chosen) for chosen in best_fit(sizes, capacity, 0)]
    assert sum(2 * tokens <= capacity for tokens in used) <= 1


def test_each_row_goes_where_it_fits_best() -> None:
    packs = best_fit([7, 6, 4, 3, 3], 10, 0)
    assert sorted(map(sorted, packs)) == [[0, 3], [1, 2], [4]] or sorted(map(sorted, packs)) == [[0, 4], [1, 2], [3]]


def test_the_seed_decides_which_of_equal_rows_are_together() -> None:
    assert best_fit([5] * 40, 10, 0) != best_fit([5] * 40, 10, 1)


tokens = st.lists(st.integers(0, 999), min_size=1, max_size=20)


@given(st.lists(tokens, min_size=1, max_size=30), st.integers(1, 50), st.integers(0, 3))
def test_unpacking_gives_the_rows_back(texts: list[list[int]], capacity: int, seed: int) -> None:
    rows = [TokenizedRow(ids, [token if token % 3 else -100 for token in ids]) for ids in texts]
    back = [row for packed in pack(rows, capacity, seed) for row in unpack(packed)]
    assert sorted(map(repr, back)) == sorted(map(repr, rows))


def test_positions_start_again_in_each_document() -> None:
    packed = join([TokenizedRow([1, 2, 3], [1, 2, 3]), TokenizedRow([4, 5], [-100, 5])])
    assert packed.input_ids == [1, 2, 3, 4, 5]
    assert packed.positions == [0, 1, 2, 0, 1]
    assert packed.labels == [1, 2, 3, -100, 5]


@pytest.mark.parametrize("count", [20_000])
def test_many_rows_are_packed_quickly(count: int) -> None:
    sizes = [(index * 37) % 500 + 10 for index in range(count)]
    packs = best_fit(sizes, 2048, 0)
    assert sum(sizes) / (len(packs) * 2048) > 0.99
