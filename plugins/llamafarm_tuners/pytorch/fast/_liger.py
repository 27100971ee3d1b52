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

    space = vars(sys.modules[type(model).__module__])
    modules = {id(vars(module)): vars(module) for module in model.modules()}
    spaces = [space, *modules.values()]
    before = [dict(one) for one in spaces]
    try:
        _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
        yield sum(_changed(one, was) for one, was in zip(spaces[1:], before[1:], strict=True))
    finally:
        for one, was in zip(spaces, before, strict=True):
            if _changed(one, was):
                one.clear()
                one.update(was)


def _changed(space: dict[str, Any], before: dict[str, Any]) -> bool:
    return space.keys() != before.keys() or any(space[name] is not value for name, value in before.items())
