"""Import torch, transformers and PEFT without what training does not use. Importing this imports none of them.

Libraries import much that only some of their users need, at the top of their modules: compilers, the losses of object
detection, bitsandbytes wherever it is installed. Here such modules wait until something of them is used; results, and
what can be done, are the same. `LLAMAFARM_LEAN_IMPORTS=off` has everything imported as the libraries have it.
"""

from __future__ import annotations

import gc
import inspect
import operator
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial, wraps
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import FrameType, MappingProxyType, ModuleType, SimpleNamespace
from typing import Any, Final

from llamafarm.models.alone import ALONE, DTENSOR
from llamafarm.models.later import later
from llamafarm.models.listing import listed_once
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
    the end is left out of all later collections (`gc.freeze`); what was garbage just before is collected first.
    """
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "false"):
        yield
        return
    with _uncollected(), waiting(_waiting_here()), listed_once(), _places_only():
        yield
        _be_there()
        _tell_peft()


def _waiting_here() -> Mapping[str, AtHand]:
    """What waits in this process: where it is one of several, what they use together does not."""
    return WAITING if "WORLD_SIZE" in os.environ else {**WAITING, **ALONE}


@contextmanager
def _places_only() -> Iterator[None]:
    """Have torch note who registers an operation by file, line and module, which is all that it keeps.

    It asks for the lines around it too, 120 times while it is imported, and each time all modules are gone
    through.
    """
    frame_of, module_of = inspect.getframeinfo, inspect.getmodule

    def without_lines(frame: Any, context: int = 1) -> Any:
        return frame_of(frame, 0 if _asked_by("torch._library.utils") else context)

    def by_name(thing: object, _filename: str | None = None) -> ModuleType | None:
        if isinstance(thing, FrameType) and _asked_by("torch.library"):
            found = sys.modules.get(thing.f_globals.get("__name__", ""))
            if found is not None and found.__dict__ is thing.f_globals:
                return found
        return module_of(thing, _filename)

    inspect.getframeinfo, inspect.getmodule = without_lines, by_name  # type: ignore[assignment]  # a frame is an object
    try:
        yield
    finally:
        inspect.getframeinfo, inspect.getmodule = frame_of, module_of


def _asked_by(name: str) -> bool:
    """Whether a module called what calls this."""
    return sys._getframe(2).f_globals.get("__name__") == name  # noqa: SLF001  # as inspect does


@contextmanager
def _uncollected() -> Iterator[None]:
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.collect(1)  # what is older was made while the command was read, and is next to nothing
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


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

    execute_before(module, DTENSOR)
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


def _without_symbols(module: StandIn) -> Mapping[str, Any]:
    """Of symbolic shapes what torch asks of shapes and conditions, of those without symbols too."""

    def answering(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*asked: Any, **options: Any) -> Any:
            """Nothing is symbolic in numbers and truth values."""
            if not options and all(map(_is_plain, asked)):
                return plain(*asked)
            execute(module)
            return getattr(module, name)(*asked, **options)

        return answer

    return {name: answering(name, plain) for name, plain in _PLAIN.items()}


def _is_plain(asked: Any) -> bool:
    """Whether it is a number, a truth value or a shape, without symbols."""
    return type(asked) in (bool, int) or (type(asked) is tuple and all(type(each) is int for each in asked))


def _be_there() -> None:
    """Have what torch imports in the midst of computing be there, and wait.

    Models are made without memory first, and for such tensors each condition would import sympy (0.2 s), and find no
    symbol.
    """
    if "torch" in sys.modules:
        for name in _SYMBOLIC:
            with suppress(ImportError):
                import_module(name)


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


_SYMBOLIC: Final = ("torch.fx.experimental.symbolic_shapes", "sympy")

_PLAIN: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "guard_or_false",
                "guard_or_true",
                "guard_size_oblivious",
                "guarding_hint_or_throw",
                "statically_known_true",
            ),
            lambda a: a,
        ),
        "expect_true": lambda a, _skip=0: a,
        "has_guarding_hint": lambda _: True,
        "is_nested_int": lambda _: False,
        "sym_eq": operator.eq,
        "sym_and": lambda *conditions: all(conditions),
        "sym_or": lambda *conditions: any(conditions),
    }
)
"""What functions for symbolic shapes do with plain ones."""

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
        _SYMBOLIC[0]: _without_symbols,
        _SYMBOLIC[1]: later("Basic"),
        **{f"transformers.loss.loss_{name}": functions(*names) for name, names in _LOSSES.items()},
    }
)
"""What waits: the compiler and its symbols, layers of 8 and 4 bits, and losses for pictures, which import scipy."""
