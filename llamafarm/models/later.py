"""Classes and functions of modules that wait: at hand by name, and real as soon as anything is done with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType, ModuleType, new_class
from typing import Any, Final

from llamafarm.models.stand_in import AtHand, StandIn, execute, execute_before, is_waiting, wait_inside

_NOWHERE: Final[Mapping[str, Sequence[str]]] = MappingProxyType({})


class Later(type):
    """The type of what stands in for a class, or a function, of a module that waits.

    Nothing is an instance of a class that has not been made, so `isinstance` answers without executing the module;
    to call it, to make a class of it and to ask for anything else executes the module first. Modules that imported it
    get the real one then; where it was put elsewhere, it does what the real one does.
    """

    _later: tuple[ModuleType, str]

    def __new__(cls, name: str, bases: tuple[type, ...], names: dict[str, Any], **options: Any) -> Any:
        """What stands in; a class made of what stands in is made of the real one."""
        if not bases:
            return super().__new__(cls, name, bases, names)
        real = tuple(base.real() if isinstance(base, Later) else base for base in bases)
        return new_class(name, real, options, lambda body: body.update(names))

    def real(cls) -> Any:
        """What it stands for; its module is executed."""
        module, name = cls._later
        execute(module)
        return getattr(module, name)

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        """Call the real one."""
        return cls.real()(*arguments, **options)

    def __getattr__(cls, name: str) -> Any:
        """What the real one has."""
        if name.startswith("__") and is_waiting(cls._later[0]):  # asked of any object
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
        return getattr(cls.real(), name)

    def __setattr__(cls, name: str, value: Any) -> None:
        """Set it on the real one."""
        setattr(cls.real(), name, value)

    def __instancecheck__(cls, instance: object) -> bool:
        """Whether it is one of the real class."""
        return not is_waiting(cls._later[0]) and isinstance(instance, cls.real())

    def __subclasscheck__(cls, subclass: type) -> bool:
        """Whether it is made of the real class."""
        return subclass is cls or (not is_waiting(cls._later[0]) and issubclass(subclass, cls.real()))


def later(*names: str, inside: Mapping[str, Sequence[str]] = _NOWHERE, after: Sequence[str] = ()) -> AtHand:
    """Names of a module that waits, and of modules inside of it, which wait too.

    Args:
        names: Classes, and functions that nobody compares or inspects.
        inside: Module inside of the package → its names.
        after: Modules that are executed before, if they wait.
    """

    def made(module: StandIn) -> Mapping[str, Any]:
        for name, own in inside.items():
            wait_inside(module, name, later(*own))
        execute_before(module, *after)
        return {name: Later(name, (), {"__module__": module.__name__, "_later": (module, name)}) for name in names}

    return made
