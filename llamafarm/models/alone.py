"""What waits in a process that trains alone: tensors on several devices (with sympy), and exports of graphs."""

from __future__ import annotations

import sys
from collections import UserDict
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from llamafarm.models.later import later
from llamafarm.models.stand_in import AtHand, StandIn, execute, functions, nothing

DTENSOR: Final = "torch.distributed.tensor"
"""torch itself asks the first tensor of a foreign type whether it is a `DTensor`, and remembers what it asked.
Compilers make such tensors: they are executed after this, so that it is the class and not what stands in for it."""

_STYLES: Final = ("transformers.distributed.expert_parallel", "transformers.distributed.tensor_parallel")


class _Registry(UserDict[str, Any]):
    """What modules that wait would enter; they are executed before it is read."""

    def __getitem__(self, name: str) -> Any:
        if name not in self.data:
            _enter()
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        return name in self.data or name in set(self)

    def __iter__(self) -> Iterator[str]:
        _enter()
        return super().__iter__()

    def __len__(self) -> int:
        _enter()
        return super().__len__()


def _enter() -> None:
    for module in map(sys.modules.get, _STYLES):
        if module is not None:
            execute(module)


def _styles(*names: str) -> AtHand:
    """Functions of modules that enter styles of tensor parallelism, with numbers of shards."""

    def made(module: StandIn) -> Mapping[str, Any]:
        try:
            from transformers.distributed.parallel_utils import ParallelInterface

            entries = ParallelInterface._global_mapping  # noqa: SLF001  # there is no other way to read it as it is
        except (ImportError, AttributeError):  # another transformers
            execute(module)
            return {}
        if not isinstance(entries, _Registry):
            ParallelInterface._global_mapping = _Registry(entries)  # noqa: SLF001
        return functions(*names)(module)

    return made


_FSDP: Final = "torch.distributed.fsdp"

ALONE: Final[Mapping[str, AtHand]] = MappingProxyType(
    {
        DTENSOR: later(
            *("DTensor", "Partial", "Replicate", "Shard", "distribute_tensor"),
            inside={
                "placement_types": ("Shard", "_StridedShard"),
                "_utils": ("compute_local_shape_and_global_offset",),
            },
        ),
        "torch.distributed._composable.fsdp": later("fully_shard", after=(DTENSOR, _FSDP)),
        _FSDP: later("CPUOffloadPolicy", "MixedPrecisionPolicy", after=(DTENSOR,)),
        "torch.distributed.checkpoint": later(
            inside={"hf_storage": ("HuggingFaceStorageReader", "HuggingFaceStorageWriter")}, after=(DTENSOR,)
        ),
        _STYLES[0]: _styles("apply_expert_parallelism"),
        _STYLES[1]: _styles(
            *("apply_tensor_parallelism", "gather_state_dict_for_save", "get_kv_heads_per_rank", "verify_tp_plan")
        ),
        "torch.export": nothing,
    }
)
"""What waits besides in such a process."""
