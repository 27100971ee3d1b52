"""A layer of configuration: values, and for each of them where it came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Path = tuple[str | int, ...]
Kind = Literal["default", "method", "hardware", "fragment", "strategy", "device", "environment", "flag", "set"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written.

    Attributes:
        kind: The layer, weak to strong in the order of `Kind`.
        place: `file:line:column` of the value, a flag as typed, a variable's name.
        key_place: The same of its key, for errors about the key.
        reason: Why a profile or method suggests it.
        text: The text as written, when it read environment variables.
        preset: True when it comes from a file that ships with LlamaFarm or a plugin.
    """

    kind: Kind
    place: str
    key_place: str = ""
    reason: str = ""
    text: str | None = None
    preset: bool = False

    def __str__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.place}{reason}"


@dataclass(frozen=True, slots=True)
class Unset:
    """Stands for a value whose environment variable is not set."""

    variable: str


@dataclass(slots=True)
class Layer:
    """Values with origins. `origins` has an entry for every node: mappings, lists and scalars."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Path, Origin] = field(default_factory=dict)

    def origin(self, path: Path) -> Origin | None:
        """The origin of the value at `path`, or of the nearest block around it."""
        while path not in self.origins and path:
            path = path[:-1]
        return self.origins.get(path)

    def put(self, path: Path, value: Any, origin: Origin) -> None:
        """Set a value, making the mappings on the way; the lists are there."""
        node: Any = self.values
        for depth, part in enumerate(path[:-1]):
            node = node[int(part)] if isinstance(node, list) else node.setdefault(str(part), {})
            self.origins.setdefault(path[: depth + 1], origin)
        node[int(path[-1]) if isinstance(node, list) else str(path[-1])] = value
        for inner, _ in walk(value, path):
            self.origins[inner] = origin

    def marked(self, *, kind: Kind, preset: bool) -> Layer:
        """The same layer with its origins' kind replaced."""
        origins = {path: replace(origin, kind=kind, preset=preset) for path, origin in self.origins.items()}
        return Layer(self.values, origins)


def walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every node below `value`, itself first."""
    yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from walk(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from walk(inner, (*path, index))


def dotted(path: Path) -> str:
    """`components.fine_tuner.config.method.0.r` for messages."""
    return ".".join(map(str, path))


def descend(values: Any, path: Path) -> Any:
    """The value at `path`, or None."""
    for part in path:
        if isinstance(values, dict):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            return None
    return values
