"""How many compiled products oneDNN and PyTorch keep, and what they take. Imports no torch.

oneDNN compiles a kernel for each new shape of a product, and keeps the last 1024. PyTorch keeps as many descriptions of
each kind, which hold their kernels as well, so that one is given back only when both have let it go. Batches of rows of
different lengths have new shapes in nearly every step: memory grew for a hundred steps, by more than a small model
trains in, and more still by the gaps that kernels leave among what comes and goes around them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

from llamafarm_tuners.pytorch.processor import AMD

KEPT: Final = 128
"""Enough for the shapes of one step, documents of a thousand tokens included: with half as many, kernels of such steps
were compiled anew in each of them."""
_DESCRIBED: Final = 16
"""Descriptions that PyTorch keeps: to make one again is quick as long as its kernel is there."""
KERNEL_BYTES: Final = 0.65 * 2**20
"""Of one; measured between 0.3 and 0.7 MiB."""
SHAPES: Final = 24
"""Of a micro-batch: those of the layers are alike; measured."""
_VARIABLES: Final = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": KEPT, "LRU_CACHE_CAPACITY": _DESCRIBED}
"""Where the libraries read it, at the first product."""


def keep_few(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have both libraries keep no more than is of use; what the user has set stays."""
    for name, count in _VARIABLES.items():
        environment.setdefault(name, str(count))


def kept(environment: Mapping[str, str] = os.environ) -> int:
    """How many will be kept: one that either library keeps is there."""
    given = {name: environment.get(name, "") for name in _VARIABLES}
    return max(int(text) if text.isdigit() else _VARIABLES[name] for name, text in given.items())


def computes(details: Mapping[str, Any], product_bytes: float) -> bool:
    """Whether products on a processor go through oneDNN: in 16 bits, and in float32 where `fast/_linear.py` has it so.

    Args:
        details: Of the device, as its profile tells them.
        product_bytes: Of a value in the products' format.
    """
    return product_bytes < 4.0 or details.get("maker") == AMD


def kernel_bytes(micro_batches: float, *, alike: bool) -> float:
    """What the kernels of a run take.

    Args:
        micro_batches: Of the whole run.
        alike: Whether all of them have the same number of tokens.
    """
    return KERNEL_BYTES * min(kept(), SHAPES * (1.0 if alike else max(1.0, micro_batches)))
