"""Modules that are executed when something of them is used, not when another module names them in an import.

`importlib.util.LazyLoader` executes a module at any attribute, those that `find_spec` and `inspect` read included, and
at each name of `from module import name`. Here a few functions of a module are at hand before it is executed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from threading import RLock
from types import ModuleType
from typing import Any, Final, cast

AtHand = Callable[["StandIn"], Mapping[str, Any]]
"""Makes what a module has before it is executed."""

_REAL: Final = frozenset({"__all__", "__version__"})
"""Of the names with underscores, those that only the real module knows; others are asked of any object."""

_lock = RLock()
"""One for all: a module that is being executed may use another that is not yet."""


class _Waiting:
    """What a stand-in needs to become the real module."""

    def __init__(self, loader: Loader, at_hand: AtHand) -> None:
        self.loader, self.make, self.running = loader, at_hand, False
        self.at_hand: Mapping[str, Any] = {}
        self.path: Any = None
        self.parent: StandIn | None = None
        self.inside: list[StandIn] = []
        self.needs: tuple[str, ...] = ()
        self.afterwards: list[Callable[[], object]] = []


class StandIn(ModuleType):
    """A module that is in `sys.modules` and not executed; it becomes the real one, and stays the same object.

    An import of a module inside of it executes it first. If that fails, what uses it gets the error, each time.
    """

    def __init__(self, name: str, waiting: _Waiting) -> None:
        super().__init__(name)
        self._stand_in = waiting

    def __getattr__(self, name: str) -> Any:
        """Execute the module for a name that is not at hand."""
        if name.startswith("__") and name not in _REAL:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        execute(self)
        return getattr(cast("ModuleType", self), name)

    def __dir__(self) -> Sequence[str]:
        """The names of the real module."""
        execute(self)
        return dir(cast("ModuleType", self))


def is_waiting(module: ModuleType) -> bool:
    """Whether a module is a stand-in that has not been executed."""
    return isinstance(module, StandIn)


def execute(module: ModuleType) -> None:
    """Execute a stand-in, if it is one.

    Raises:
        Exception: Whatever importing the real module raises.
    """
    with _lock:
        if not isinstance(module, StandIn):  # another thread was faster
            return
        waiting = module._stand_in  # noqa: SLF001  # our own
        if waiting.running:  # it imports what imports it
            raise AttributeError(f"partially initialized module {module.__name__!r} has no such attribute")
        for first in (waiting.parent, *map(sys.modules.get, waiting.needs)):
            if isinstance(first, StandIn) and not first._stand_in.running:  # noqa: SLF001  # our own
                execute(first)
        if isinstance(module, StandIn):  # what came first may have used it
            _to_real(module, waiting)


def _to_real(module: StandIn, waiting: _Waiting) -> None:
    before = dict(module.__dict__)
    spec = module.__spec__
    assert spec is not None
    waiting.running = True
    try:
        for each in (module, *waiting.inside):  # a package takes from the modules inside of it what is real
            _take_back(each)
        spec.loader = module.__loader__ = waiting.loader
        waiting.loader.exec_module(module)
    except BaseException:
        module.__dict__.clear()
        module.__dict__.update(before)
        for each in waiting.inside:
            if isinstance(each, StandIn):
                each.__dict__.update(each._stand_in.at_hand)  # noqa: SLF001  # our own
        raise
    else:
        module.__dict__.pop("_stand_in", None)
        module.__class__ = ModuleType  # type: ignore[assignment]  # as importlib's own lazy modules do
    finally:
        waiting.running = False
    _hand_over(module, waiting.at_hand)
    for do in waiting.afterwards:
        do()


def _take_back(module: ModuleType) -> None:
    if isinstance(module, StandIn):
        for name, value in module._stand_in.at_hand.items():  # noqa: SLF001  # our own
            if module.__dict__.get(name) is value:
                del module.__dict__[name]


def _hand_over(module: ModuleType, at_hand: Mapping[str, Any]) -> None:
    """Give modules that imported what was at hand the real thing, under the same name."""
    for other in list(sys.modules.values()):
        names = other.__dict__ if isinstance(other, ModuleType) else {}
        for name, given in at_hand.items():
            if names.get(name) is given and name in module.__dict__:
                names[name] = module.__dict__[name]


def afterwards(module: ModuleType, do: Callable[[], object]) -> None:
    """Do something as soon as a module is executed; now, if it is already."""
    with _lock:
        if isinstance(module, StandIn):
            module._stand_in.afterwards.append(do)  # noqa: SLF001  # our own
            return
    do()


class _StandInLoader(Loader):
    """Puts a stand-in where the real loader would execute the module."""

    def __init__(self, loader: Loader, at_hand: AtHand) -> None:
        self._waiting = _Waiting(loader, at_hand)

    def __getattr__(self, name: str) -> Any:
        """What else the real loader can do: give the source, read resources."""
        return getattr(self._waiting.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A module without contents."""
        return StandIn(spec.name, self._waiting)

    def exec_module(self, module: ModuleType) -> None:
        """Leave it at what is at hand."""
        assert isinstance(module, StandIn)
        waiting = self._waiting
        waiting.path = module.__dict__.get("__path__")
        if waiting.path is not None and not any(isinstance(finder, _Inside) for finder in sys.meta_path):
            sys.meta_path.insert(0, cast("Any", _Inside()))
        waiting.at_hand = waiting.make(module)
        module.__dict__.update(waiting.at_hand)


class _Inside:
    """Executes a package that waits before a module inside of it is imported; it stays for as long as the process."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """None, so that all others look; what the package itself has imported is not imported once more."""
        package = sys.modules.get(name.rpartition(".")[0])
        if not isinstance(package, StandIn) or package._stand_in.running:  # noqa: SLF001  # our own
            return None
        execute(package)
        there = sys.modules.get(name)
        return None if there is None else ModuleSpec(name, _There(there))


class _There(Loader):
    """Loads a module that is there already."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module itself."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Leave it as it is."""
        module.__spec__ = self._spec


class _Finder:
    """Finds the named modules as all others do, and gives them another loader."""

    def __init__(self, named: Mapping[str, Callable[[Loader], Loader]]) -> None:
        self._named = named

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """The real module's spec with that loader; None for all other modules."""
        loader = self._named.get(name)
        if loader is None:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, _Finder):
                continue
            find = getattr(finder, "find_spec", None)
            spec = cast("ModuleSpec | None", find(name, path, target)) if find is not None else None
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = loader(spec.loader)
                return spec
        return None


@contextmanager
def waiting(named: Mapping[str, AtHand]) -> Iterator[None]:
    """While it lasts, the named modules wait to be used when they are imported for the first time."""
    with _found({name: partial(_StandInLoader, at_hand=at_hand) for name, at_hand in named.items()}):
        yield


@contextmanager
def adapted(name: str, change: Callable[[ModuleType], None]) -> Iterator[None]:
    """While it lasts, a module is changed as soon as it is executed, before any other module gets it."""
    with _found({name: partial(_Adapting, change=change)}):
        yield


@contextmanager
def _found(named: Mapping[str, Callable[[Loader], Loader]]) -> Iterator[None]:
    finder = _Finder(named)
    sys.meta_path.insert(0, cast("Any", finder))
    try:
        yield
    finally:
        sys.meta_path.remove(cast("Any", finder))


class _Adapting(Loader):
    """Executes a module, and changes it before anybody sees it."""

    def __init__(self, loader: Loader, change: Callable[[ModuleType], None]) -> None:
        self._loader, self._change = loader, change

    def __getattr__(self, name: str) -> Any:
        """What else the real loader can do."""
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        """Execute it and change it."""
        spec = module.__spec__
        assert spec is not None
        spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._change(module)


def wait_inside(package: StandIn, name: str, at_hand: AtHand, *, alone: bool = False) -> None:
    """Have a module of a package that waits be there, if there is one of that name, and wait too.

    The package is executed before it; not if it is `alone`, for modules that use nothing of the package itself.
    """
    full = f"{package.__name__}.{name}"
    spec = PathFinder.find_spec(full, package._stand_in.path)  # noqa: SLF001  # our own
    if full in sys.modules or spec is None or spec.loader is None:
        return
    spec.loader = _StandInLoader(spec.loader, at_hand)
    module = cast("StandIn", module_from_spec(spec))
    spec.loader.exec_module(module)
    module._stand_in.parent = None if alone else package  # noqa: SLF001  # our own
    package._stand_in.inside.append(module)  # noqa: SLF001  # our own
    sys.modules[full] = module
    setattr(package, name, module)


def execute_before(module: StandIn, *needs: str) -> None:
    """Have other modules that wait be executed before this one."""
    module._stand_in.needs = needs  # noqa: SLF001  # our own


def nothing(_: StandIn) -> Mapping[str, Any]:
    """Nothing is at hand."""
    return {}


def functions(*names: str) -> AtHand:
    """Functions that execute the module when they are called."""

    def made(module: StandIn) -> Mapping[str, Any]:
        return {name: _calling(module, name) for name in names}

    return made


def _calling(module: StandIn, name: str) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        execute(module)
        return getattr(module, name)(*arguments, **options)

    call.__name__ = call.__qualname__ = name
    call.__module__ = module.__name__
    return call
