"""What loading an adapter has in common with making one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def repeatable() -> Iterator[None]:
    """Draw the same random numbers each time, leaving the generators outside as they are.

    PEFT takes some bases apart by a randomized algorithm, both when the adapter is made and whenever it is loaded: with
    other numbers the rest that stays in the base would be another one than was trained.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
