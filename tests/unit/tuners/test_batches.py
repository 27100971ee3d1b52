from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamafarm_tuners.pytorch._batches import epoch_order, in_one_row, masked, micro_batches, padded, steps_of


@dataclass
class TokenRow:
    input_ids: list[int]
    labels: list[int]


def test_rows_are_padded_on_the_right_and_masked_by_length():
    pad = 7  # also a real token: only the length says what is padding
    batch = padded([TokenRow([7, 8, 7], [-100, 8, 7]), TokenRow([7, 7], [-100, 7])], pad)
    assert batch.input_ids.tolist() == [[7, 8, 7], [7, 7, 7]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.targets.tolist() == [[8, 7, -100], [7, -100, -100]]
    assert (batch.tokens, batch.labels) == (5, 3)
    assert batch.kept.tolist() == [0, 1]


def test_only_positions_with_a_target_are_kept():
    batch = padded([TokenRow([1, 2, 3, 4], [-100, -100, -100, 4]), TokenRow([1, 2, 3], [-100, -100, -100])], 0)
    assert batch.kept.tolist() == [2]


def test_a_batch_with_nothing_to_learn_still_has_a_position():
    row = masked(TokenRow([1, 2], [1, 2]))
    batch = padded([row], 0)
    assert (batch.labels, batch.kept.tolist(), batch.targets.tolist()) == (0, [0], [[-100, -100]])


def test_in_one_row_nothing_is_padded_and_no_row_predicts_the_next():
    rows = [TokenRow([7, 8, 9], [-100, 8, 9]), TokenRow([5], [5]), TokenRow([3, 4], [3, 4])]
    batch = in_one_row(rows)
    assert batch.input_ids.tolist() == [[7, 8, 9, 5, 3, 4]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert batch.targets.tolist() == [[8, 9, -100, -100, 4, -100]]
    assert (batch.bounds.tolist(), batch.longest) == ([0, 3, 4, 6], 3)
    assert (batch.tokens, batch.labels, batch.kept.tolist()) == (6, 3, [0, 1, 4])
    assert batch.attention_mask is None


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 99))
def test_both_layouts_have_the_same_tokens_and_targets(lengths, seed):
    ids = [[(seed + at * 7 + n) % 50 for n in range(length)] for at, length in enumerate(lengths)]
    rows = [TokenRow(row, [-100 if token % 3 else token for token in row]) for row in ids]
    one, other = padded(rows, 0), in_one_row(rows)
    real = one.attention_mask.bool()
    assert one.input_ids[real].tolist() == other.input_ids[0].tolist()
    assert one.targets[real].tolist() == other.targets[0].tolist()
    assert (one.tokens, one.labels) == (other.tokens, other.labels)


def test_widths_are_rounded_up():
    assert padded([TokenRow([1] * 9, [1] * 9)], 0, 8).input_ids.shape == (1, 16)


@given(st.integers(1, 200), st.integers(0, 5), st.integers(0, 3), st.integers(1, 8), st.booleans())
def test_each_epoch_has_every_row_once(rows, seed, epoch, batch, by_length):
    lengths = [(i * 7) % 13 + 1 for i in range(rows)]
    order = epoch_order(lengths, seed, epoch, batch, by_length=by_length)
    assert sorted(order) == list(range(rows))
    assert order == epoch_order(lengths, seed, epoch, batch, by_length=by_length)


def test_orders_differ_by_seed_and_epoch():
    orders = {tuple(epoch_order([1] * 50, seed, epoch, 4, by_length=False)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_grouping_wastes_less_padding_and_starts_with_the_longest():
    lengths = [(i * 37) % 101 + 1 for i in range(400)]

    def padding(order):
        batches = [order[i : i + 4] for i in range(0, len(order), 4)]
        return sum(max(lengths[r] for r in b) * len(b) - sum(lengths[r] for r in b) for b in batches)

    grouped = epoch_order(lengths, 0, 0, 4, by_length=True)
    assert padding(grouped) < padding(epoch_order(lengths, 0, 0, 4, by_length=False)) / 5
    assert lengths[grouped[0]] == max(lengths)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_each_micro_step(world):
    order = list(range(11))
    shares = [micro_batches(order, 2, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(row for share in shares for micro in share for row in micro) == order
    assert shares[0][0] == [0, 1]


def test_what_is_left_makes_a_step():
    assert list(steps_of([[0], [1], [2], [3], [4]], 2)) == [[[0], [1]], [[2], [3]], [[4]]]


def test_masks_are_integers():
    assert padded([TokenRow([1, 2], [1, 2])], 0).attention_mask.dtype == torch.long
