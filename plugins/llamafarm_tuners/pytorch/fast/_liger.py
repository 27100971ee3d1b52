"""Kernels of Liger for norms, gated activations and rotary positions; the head and the loss stay ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def liger_kernels(model: nn.Module) -> Iterator[int]:
    """While it lasts, a transformers model (without adapters around it) computes with the kernels of Liger.

    Liger changes instances, and names in the module of the architecture, for good; both are put back.

    Yields:
        How many modules compute in another way: 0 if Liger does not know the architecture.
    """
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    spaces = {id(space): space for space in (vars(module) for module in model.modules())}
    everything = [vars(sys.modules[type(model).__module__]), *spaces.values()]
    before = [dict(space) for space in everything]
    changes: list[list[str]] = []
    try:
        try:
            _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
        finally:
            changes += [_changes(space, was) for space, was in zip(everything, before, strict=True)]
        yield sum(map(bool, changes[1:]))
    finally:
        for space, was, changed in zip(everything, before, changes, strict=True):
            for name in changed:  # and no other: a model that has begun to train since goes on training
                if name in was:
                    space[name] = was[name]
                else:
                    space.pop(name, None)


def _changes(space: dict[str, Any], before: dict[str, Any]) -> list[str]:
    return [name for name, value in space.items() if name not in before or before[name] is not value]
