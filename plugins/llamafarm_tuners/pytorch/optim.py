"""What the names of optimizers stand for. Imports no torch."""

from __future__ import annotations

from types import MappingProxyType

BITSANDBYTES = frozenset({"adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"})
"""Those that need bitsandbytes."""

_UNPAGED = MappingProxyType({"paged_adamw_8bit": "adamw_8bit", "paged_adamw_32bit": "adamw_torch"})


def effective(optim: str, device: str) -> str:
    """The optimizer that is used on a type of device: paging is between a GPU's memory and the main memory."""
    return optim if device == "cuda" else _UNPAGED.get(optim, optim)
