"""What layers with adapters drop: torch's own masks, in bits, wherever and however they are drawn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from llamafarm_tuners.pytorch.fast import _drop
from llamafarm_tuners.pytorch.fast._drop import Among, add_left, drawn, left, unpacked
from llamafarm_tuners.pytorch.fast._kernels import kernels, switched
from llamafarm_tuners.pytorch.fast._low import WIDEST_RANK, across, add_up, down

FORMATS = (torch.float32, torch.bfloat16)
WAYS = ("twister", "torch", "uncompiled")


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """The generator that the kernels know, one that they do not know, and no kernels."""
    if request.param == "torch":
        monkeypatch.setattr(_drop, "_twists", lambda found: False)
    with switched(request.param != "uncompiled"):
        yield request.param


def both(shape, share, dtype, seed, before=0):
    """Masks of torch's dropout and ours, in bytes, and the states of the generator afterwards."""
    found = []
    with torch.random.fork_rng(devices=[]):
        for draw in (
            lambda: functional.dropout(torch.ones(shape, dtype=dtype), share) != 0,
            lambda: unpacked(drawn(torch.ones(shape, dtype=dtype), share, torch.float32)),
        ):
            torch.manual_seed(seed)
            torch.rand(before)
            found += [draw(), draw(), torch.get_rng_state()]
    return found[:3], found[3:]


CASES = {
    "rows": st.integers(1, 60),
    "columns": st.one_of(st.integers(1, 70), st.sampled_from([64, 96, 384])),
    "share": st.floats(0.001, 0.999),
    "dtype": st.sampled_from(FORMATS),
    "seed": st.integers(0, 2**40),
    "before": st.integers(0, 700),
}


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_masks_are_those_of_torch(way):
    @settings(max_examples=40, deadline=None)
    @given(**CASES)
    def same(rows, columns, share, dtype, seed, before):
        theirs, ours = both((rows, columns), share, dtype, seed, before)
        assert all(one.equal(other) for one, other in zip(theirs, ours, strict=True))

    same()


def test_they_are_in_bits_where_kernels_take_the_rows(way):
    for dtype, columns in ((torch.float32, 64), (torch.bfloat16, 64), (torch.float32, 40), (torch.float64, 64)):
        x = torch.ones(3, columns, dtype=dtype)
        compiled = kernels(x) is not None and columns % 32 == 0
        mask = drawn(x, 0.5, torch.float32)
        assert (mask.dtype, mask.shape) == ((torch.uint8, (3, 8)) if compiled else (torch.bool, (3, columns)))


@pytest.mark.parametrize("threads", [1, 2])
def test_shares_and_threads(way, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for share in (1e-12, 0.05, 1 / 3, 1 - 1e-12):
            theirs, ours = both((700, 64), share, torch.float32, 3)
            assert all(one.equal(other) for one, other in zip(theirs, ours, strict=True))
    finally:
        torch.set_num_threads(before)


def test_a_generator_that_draws_otherwise_is_noticed(monkeypatch):
    found = kernels(torch.ones(1))
    if found is None:
        pytest.skip("no kernels")

    class Other:
        """Kernels that ask a generator for one number more, or keep what is to be dropped."""

        def __init__(self, fault):
            self.fault = fault

        def draw(self, generator, rows, columns, share):
            mask = found.draw(generator, rows, columns, share)
            if self.fault == "state":
                torch.rand(1, generator=generator)
            return mask if self.fault == "state" else ~mask

    for fault in ("state", "mask"):
        assert not _drop._twists(Other(fault))
    monkeypatch.setattr(_drop, "GENERATOR_BYTES", 5048)
    assert not _drop._twists(Other("size"))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("rank", [1, 8, WIDEST_RANK + 2])
@pytest.mark.parametrize("columns", [40, 64])
def test_products_of_what_is_left(way, dtype, rank, columns):
    torch.manual_seed(1)
    x, y, low = (torch.randn(21, wide).to(dtype) for wide in (columns, columns, rank))
    matrix = torch.randn(rank, columns)
    mask = drawn(x, 0.4, torch.float32)
    kept = unpacked(mask).double()
    # sums in float32 lose the last digits; bfloat16 keeps 8 bits, here of sums and of what is added to them
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 0.3}

    def assert_near(found, expected):
        torch.testing.assert_close(found.double(), expected, **close)

    assert left(x, mask).equal(x * unpacked(mask))
    assert_near(down(x, matrix, 0.5, mask, exact=True), 0.5 * (x.double() * kept) @ matrix.double().t())
    assert_near(across(low, x, matrix, 2.0, mask), 2 * low.double().t() @ (x.double() * kept))
    grown = y.clone()
    add_up(grown, low, matrix, 2.0, mask)
    assert_near(grown, y.double() + 2 * (low.double() @ matrix.double()) * kept)
    assert grown[~unpacked(mask)].equal(y[~unpacked(mask)])
    grown = y.clone()
    add_left(grown, x.clone(), mask)
    assert grown.equal(y + x * unpacked(mask))


@pytest.mark.parametrize("before", [True, False])
def test_masks_serve_with_and_without_kernels(before):
    """They may be switched on or off between the way there and the way back."""
    torch.manual_seed(1)
    x, matrix = torch.randn(5, 64), torch.randn(4, 64)
    with switched(before):
        mask = drawn(x, 0.5, torch.float32)
    for now in (True, False):
        with switched(now):
            torch.testing.assert_close(
                down(x, matrix, mask=mask), x * unpacked(mask) @ matrix.t(), rtol=1e-5, atol=1e-5
            )
            assert left(x, mask).equal(x * unpacked(mask))


def test_some_rows_drop_what_they_drop_among_all(way):
    x, rows = torch.ones(50, 64), torch.tensor([3, 4, 17, 49])
    found = []
    for among in (None, Among(50, rows)):
        torch.manual_seed(4)
        mask = unpacked(drawn(x if among is None else x[rows], 0.5, torch.float32, among))
        found.append((mask[rows] if among is None else mask, torch.rand(1)))
    assert all(one.equal(other) for one, other in zip(*found, strict=True))
