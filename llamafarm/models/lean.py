"""Import torch, transformers and PEFT without what training does not use. Importing this imports none of them.

Libraries import much that only some of their users need, at the top of their modules: compilers, the losses of object
detection, bitsandbytes wherever it is installed. Here such modules wait until something of them is used; results, and
what can be done, are the same. `LLAMAFARM_LEAN_IMPORTS=off` has everything imported as the libraries have it.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextlib import contextmanager
from functools import partial, wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any, Final, Self

from llamafarm.models.later import later
from llamafarm.models.stand_in import (
    AtHand,
    StandIn,
    afterwards,
    execute,
    execute_before,
    functions,
    is_waiting,
    nothing,
    wait_inside,
    waiting,
)

SWITCH: Final = "LLAMAFARM_LEAN_IMPORTS"


@contextmanager
def lean_imports() -> Iterator[None]:
    """For the import statements inside: modules of `WAITING` wait, and the garbage collector too.

    Importing makes a million objects and hardly any garbage. The collector would look through all of them again and
    again, and twice more when the process ends: with what is imported, that took a third of the time. What is there at
    the end is left out of all later collections (`gc.freeze`); what was garbage before is collected first.
    """
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "false"):
        yield
        return
    with _uncollected(), waiting(_waiting_here()), _listed_once():
        yield
        _tell_peft()


def _waiting_here() -> Mapping[str, AtHand]:
    """What waits in this process: where it is one of several, what they use together does not."""
    return WAITING if "WORLD_SIZE" in os.environ else {**WAITING, **ALONE}


@contextmanager
def _uncollected() -> Iterator[None]:
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.collect()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


@contextmanager
def _listed_once() -> Iterator[None]:
    """Have transformers read the names in all files of its models once: it does so for two modules, one after another.

    The second list is the first one under shorter names.
    """
    if "transformers.models" in sys.modules:
        yield
        return
    import transformers.utils.import_utils as utils

    listing: Callable[..., Any] = utils.define_import_structure
    folder = Path(utils.__file__).parents[1] / "models"

    def list_once(module_path: Any, prefix: str | None = None) -> Any:
        if prefix is not None or Path(module_path) != folder / "__init__.py":
            return listing(module_path, prefix)
        first = listing(folder, prefix="models")  # remembered by transformers, which has added names of its own
        under = {
            needs: {name: given for name, given in names.items() if name.startswith("models.")}
            for needs, names in first.items()
        }
        return {
            needs: {name.removeprefix("models."): set(given) for name, given in names.items()}
            for needs, names in under.items()
        }

    utils.define_import_structure = list_once
    try:
        yield
    finally:
        utils.define_import_structure = listing


_DTENSOR: Final = "torch.distributed.tensor"
"""torch itself asks the first tensor of a foreign type whether it is a `DTensor` and remembers the class: compilers, which
make such tensors, are executed after it."""

_MARKS: Final = ("assume_constant_result", "allow_in_graph", "disallow_in_graph")
"""Decorators that hand back the function itself."""


def _dynamo(module: StandIn) -> Mapping[str, Any]:
    """Of `torch._dynamo` what torch and transformers decorate functions with, and call in each optimizer step."""

    def disable(
        fn: Callable[..., Any] | None = None,
        recursive: bool = True,
        *,
        reason: str | None = None,
        wrapping: bool = True,
    ) -> Any:
        """Keep a function out of what is compiled: as long as the compiler is not there, nothing is."""
        options: dict[str, Any] = {"recursive": recursive, "reason": reason, "wrapping": wrapping}
        if fn is None:
            return partial(disable, **options)
        if isinstance(fn, type) or not hasattr(fn, "__code__"):
            execute(module)  # rare: a class or a module
            return module.disable(fn, **options)
        return _disabled(module, fn, options)

    def graph_break(*_: Any, **__: Any) -> None:
        """Nothing is compiled, so nothing is to break."""

    def marked(name: str) -> Callable[[Any], Any]:
        def mark(fn: Any) -> Any:
            """Have the compiler mark a function once it is there; it is handed back as it is."""
            if not callable(fn):
                execute(module)  # rare: a list of them, or a mistake
                return getattr(module, name)(fn)
            afterwards(module, lambda: getattr(module, name)(fn))
            return fn

        return mark

    execute_before(module, _DTENSOR)
    own = later("TransformGetItemToIndex")  # transformers' masks import it, and it imports no compiler
    wait_inside(module, "_trace_wrapped_higher_order_op", own, alone=True)
    marks = {name: marked(name) for name in _MARKS}
    return {"disable": disable, "graph_break": graph_break, **marks}


def _disabled(module: ModuleType, fn: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    real: Callable[..., Any] | None = None

    def call(*arguments: Any, **keywords: Any) -> Any:
        nonlocal real
        if is_waiting(module):
            return fn(*arguments, **keywords)
        real = real or module.disable(fn, **options)
        return real(*arguments, **keywords)

    named = wraps(fn)(call) if options["wrapping"] else call
    marks = {  # what the compiler tells such a function by
        "disable": True,
        "disable_msg": options["reason"],
        "disable_recursive": options["recursive"],
        "orig_callable": fn,
        "wrapper_id": id(named),
    }
    named.__dict__.update({f"_torchdynamo_{key}": value for key, value in marks.items()})
    return named


def _tell_peft() -> None:
    """Tell PEFT that bitsandbytes has layers of 4 bits, which it asks for each adapter and remembers.

    All versions have them since 0.39; asking bitsandbytes itself would import it.
    """
    there = sys.modules.get("bitsandbytes")
    if there is None or not is_waiting(there) or "peft.import_utils" not in sys.modules:
        return
    try:
        old = tuple(map(int, version("bitsandbytes").split(".")[:2])) < (0, 39)
    except (PackageNotFoundError, ValueError):
        return
    if not old:
        from peft.import_utils import is_bnb_4bit_available

        there.__dict__["nn"] = SimpleNamespace(Linear4bit=None)
        try:
            is_bnb_4bit_available()
        finally:
            there.__dict__.pop("nn", None)


_LOSSES: Final = {
    "d_fine": ("DFineForObjectDetectionLoss",),
    "deformable_detr": ("DeformableDetrForObjectDetectionLoss", "DeformableDetrForSegmentationLoss"),
    "deimv2": ("Deimv2ForObjectDetectionLoss",),
    "for_object_detection": ("ForObjectDetectionLoss", "ForSegmentationLoss"),
    "grounding_dino": ("GroundingDinoForObjectDetectionLoss",),
    "lw_detr": ("LwDetrForObjectDetectionLoss",),
    "rf_detr": ("RfDetrForSegmentationLoss",),
    "rt_detr": ("RTDetrForObjectDetectionLoss",),
}

WAITING: Final[Mapping[str, AtHand]] = MappingProxyType(
    {
        "torch._dynamo": _dynamo,
        "bitsandbytes": nothing,
        **{f"transformers.loss.loss_{name}": functions(*names) for name, names in _LOSSES.items()},
    }
)
"""What waits: the compiler, layers of 8 and 4 bits, and losses for pictures, which import scipy."""


_STYLES: Final = ("transformers.distributed.expert_parallel", "transformers.distributed.tensor_parallel")


class _Registry(dict[str, Any]):
    """What modules that wait would enter; they are executed before it is read."""

    def __init__(self, given: Mapping[str, Any], modules: Sequence[str]) -> None:
        super().__init__(given)
        self._modules = modules

    def _read(self) -> Self:
        for name in self._modules:
            module = sys.modules.get(name)
            if module is not None and is_waiting(module):
                execute(module)
        return self

    def __missing__(self, name: str) -> Any:
        """An entry of a module that waits."""
        return dict(self._read())[name]

    def __contains__(self, name: object) -> bool:
        return dict.__contains__(self, name) or dict.__contains__(self._read(), name)

    def __iter__(self) -> Iterator[str]:
        return dict.__iter__(self._read())

    def __len__(self) -> int:
        return dict.__len__(self._read())

    def keys(self) -> KeysView[str]:
        return dict.keys(self._read())

    def values(self) -> ValuesView[Any]:
        return dict.values(self._read())

    def items(self) -> ItemsView[str, Any]:
        return dict.items(self._read())


def _styles(*names: str) -> AtHand:
    """Functions of modules that enter styles of tensor parallelism, with numbers of shards."""

    def made(module: StandIn) -> Mapping[str, Any]:
        from transformers.distributed.parallel_utils import ParallelInterface

        if not isinstance(ParallelInterface._global_mapping, _Registry):
            ParallelInterface._global_mapping = _Registry(ParallelInterface._global_mapping, _STYLES)
        return functions(*names)(module)

    return made


_FSDP: Final = "torch.distributed.fsdp"

ALONE: Final[Mapping[str, AtHand]] = MappingProxyType(
    {
        _DTENSOR: later(
            *("DTensor", "Partial", "Replicate", "Shard", "distribute_tensor"),
            inside={
                "placement_types": ("Shard", "_StridedShard"),
                "_utils": ("compute_local_shape_and_global_offset",),
            },
        ),
        "torch.distributed._composable.fsdp": later("fully_shard", after=(_DTENSOR, _FSDP)),
        _FSDP: later("CPUOffloadPolicy", "MixedPrecisionPolicy", after=(_DTENSOR,)),
        "torch.distributed.checkpoint": later(
            inside={"hf_storage": ("HuggingFaceStorageReader", "HuggingFaceStorageWriter")}, after=(_DTENSOR,)
        ),
        _STYLES[0]: _styles("apply_expert_parallelism"),
        _STYLES[1]: _styles(
            *("apply_tensor_parallelism", "gather_state_dict_for_save", "get_kv_heads_per_rank", "verify_tp_plan")
        ),
        "torch.export": nothing,
    }
)
"""What waits besides in a process that trains alone: tensors on several devices (with sympy), and exports of graphs."""
