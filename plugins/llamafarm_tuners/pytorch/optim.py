"""What the names of optimizers stand for. Imports no torch."""

from __future__ import annotations

from types import MappingProxyType

from llamafarm.api import TrainingConfig

BITSANDBYTES = frozenset({"adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"})
"""Those that need bitsandbytes."""

_UNPAGED = MappingProxyType({"paged_adamw_8bit": "adamw_8bit", "paged_adamw_32bit": "adamw_torch"})


def effective(optim: str, device: str) -> str:
    """The optimizer that is used on a type of device: paging is between a GPU's memory and the main memory."""
    return optim if device == "cuda" else _UNPAGED.get(optim, optim)


OFFLOADED = frozenset({"adamw_torch", "adamw_torch_fused"})
"""Those whose state can be kept in main memory: torch computes their steps there."""
BESIDE_MAIN_MEMORY = frozenset({"cuda"})
"""Types of devices whose memory is not the main memory."""


def offloaded(training: TrainingConfig, device: str) -> bool:
    """Whether a run keeps its optimizer's state in main memory, apart from the device's."""
    return training.use_cpu_offload and device in BESIDE_MAIN_MEMORY and training.optim in OFFLOADED
