"""What loading an adapter has in common with making one."""

from __future__ import annotations

import warnings
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


@contextmanager
def without_idle_warnings() -> Iterator[None]:
    """Leave out what PEFT says of modules that it has no list of and treats rightly all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unsupported layer type", category=UserWarning)
        yield
