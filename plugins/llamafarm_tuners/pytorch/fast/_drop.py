"""What dropout keeps of rows, and what is left of them.

A mask has a bit for each entry (`uint8`, eight of a row in a byte, the first in its lowest bit) where the compiled
kernels take the rows, else a byte (`bool`). It is what `torch.dropout` draws on a CPU with the same generator, bit for
bit, and the generator goes on as after that.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from llamafarm_tuners.pytorch.fast._kernels import GENERATOR_BYTES, Kernels, kernels

_COLUMNS = 32
"""Widths of which masks are in bits are multiples of it."""

_PROBES = ((1, 0.95, 1), (2, 0.5, 9), (3, 0.9, 100))
"""Seed, share and rows that are drawn both ways, before one is trusted."""


class Among(NamedTuple):
    """Where rows come from: numbers are drawn for those that are left out, too.

    Attributes:
        tokens: How many there were.
        rows: Which are left, (rows,).
    """

    tokens: int
    rows: torch.Tensor


def drawn(x: torch.Tensor, share: float, dtype: torch.dtype, among: Among | None = None) -> torch.Tensor:
    """The mask that keeps all of x but a share of it, 0 < share < 1.

    Args:
        x: (tokens, columns), on the CPU.
        share: Of what is dropped.
        dtype: In what PEFT would have drawn: that of the adapter's parameters.
        among: Of what x are some rows; None: they are all.
    """
    tokens, columns = len(x) if among is None else among.tokens, x.shape[1]
    found = kernels(x) if columns % _COLUMNS == 0 else None
    if found is not None and _twists(found):
        mask = found.draw(torch.default_generator, tokens, columns, 1 - share)
    else:
        mask = torch.empty((tokens, columns), dtype=dtype).bernoulli_(1 - share).bool()
        mask = mask if found is None else found.pack(mask)
    return mask if among is None else mask.index_select(0, among.rows)


def left(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What is kept of x, (tokens, columns), and 0 elsewhere."""
    if (found := _compiled(x, mask)) is not None:
        y = torch.empty_like(x)
        found.kept(x, mask, y, add=False)
        return y
    return x * unpacked(mask)


def add_left(y: torch.Tensor, x: torch.Tensor, mask: torch.Tensor) -> None:
    """`y += left(x, mask)`; x may be overwritten."""
    if (found := _compiled(x, mask, y)) is not None:
        found.kept(x, mask, y, add=True)
    else:
        y += x.mul_(unpacked(mask))


def unpacked(mask: torch.Tensor) -> torch.Tensor:
    """A mask with a byte for each entry."""
    if mask.dtype == torch.bool:
        return mask
    return mask.unsqueeze(2).bitwise_right_shift(torch.arange(8, dtype=torch.uint8)).bitwise_and_(1).bool().flatten(1)


def _compiled(x: torch.Tensor, mask: torch.Tensor, *others: torch.Tensor) -> Kernels | None:
    found = kernels(x, *others) if mask.dtype == torch.uint8 else None
    return found if all(one.is_contiguous() for one in (x, *others)) else None


@cache
def _twists(found: Kernels) -> bool:
    """Whether PyTorch's `bernoulli_` asks its Mersenne twister here, as the kernels do, entry by entry.

    With MKL on Intel's processors it does not: there all numbers are MKL's, from one seed.
    """
    ours, theirs = torch.Generator(), torch.Generator()
    for seed, share, rows in _PROBES:
        if len(ours.manual_seed(seed).get_state()) != GENERATOR_BYTES:
            return False
        mask = unpacked(found.draw(ours, rows, _COLUMNS, share))
        expected = torch.empty(mask.shape).bernoulli_(share, generator=theirs.manual_seed(seed)).bool()
        if not (mask.equal(expected) and ours.get_state().equal(theirs.get_state())):
            return False
    return True
