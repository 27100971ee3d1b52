"""YAML text → `Layer`: one parser (ruamel.yaml, YAML 1.2), every value with its line and column.

YAML 1.2 reads `2e-4` as a number and `no` as a word. Tags beyond the core schema are refused, so a file can only hold
data; size, depth and node count are bounded, so that it cannot hold a bomb either.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llamafarm.core.environment import expand
from llamafarm.core.layers import Kind, Layer, Origin, Path, dotted
from llamafarm.errors import Problem, StrategyError

_MAX_BYTES = 1_000_000
_MAX_DEPTH = 32
_MAX_NODES = 20_000
_CORE = "tag:yaml.org,2002:"
_PLAIN_SCALARS = {f"{_CORE}{name}" for name in ("null", "bool", "int", "float")}
_TEXT_SCALARS = {
    f"{_CORE}{name}" for name in ("str", "timestamp")
}  # dates have no meaning in a strategy: keep the text


def read_yaml(path: FilePath, *, kind: Kind = "strategy", preset: bool = False, name: str | None = None) -> Reading:
    """Read a file.

    Raises:
        StrategyError: Unreadable, not UTF-8, too large, or not YAML; with file:line:column.
    """
    shown = name or display(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StrategyError.of("LF-STRATEGY-001", f"cannot read the file: {error.strerror}", where=shown) from None
    if len(data) > _MAX_BYTES:
        raise StrategyError.of(
            "LF-STRATEGY-002", f"the file has {len(data):,} bytes; at most {_MAX_BYTES:,} are read", where=shown
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise StrategyError.of(
            "LF-STRATEGY-003", "not UTF-8", where=f"{shown}:{line}", hint="save the file as UTF-8"
        ) from None
    return parse_yaml(text, shown, kind=kind, preset=preset)


def display(path: FilePath) -> str:
    """A file as messages name it: relative to the working folder where that is shorter."""
    try:
        return os.path.relpath(path) if FilePath(os.path.realpath(path)).is_relative_to(FilePath.cwd()) else str(path)
    except (OSError, ValueError):
        return str(path)


class Reading(Layer):
    """A parsed file: the layer, problems that do not stop the reading, and notices."""

    __slots__ = ("notices", "problems")

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[Problem] = []
        self.notices: list[str] = []


def parse_yaml(text: str, name: str, *, kind: Kind = "strategy", preset: bool = False) -> Reading:
    """Parse YAML text whose top level is a mapping; `name` stands in places."""
    root = _compose(text, name)
    if not isinstance(root, MappingNode):
        what = "is empty" if root is None else "holds no mapping"
        raise StrategyError.of(
            "LF-STRATEGY-005",
            f"the file {what}; a strategy is a mapping of keys",
            where=name,
            hint="see docs/strategies.md",
        )
    return _Reader(name, kind, preset, os.environ).read(root)


def parse_scalar(text: str) -> Any:
    """The value of an override: `1e-4`, `true`, `[a, b]`, `{type: lora}`, or plain text.

    Raises:
        StrategyError: If it looks like YAML but is not.
    """
    root = _compose(text, "value") if text.strip() else None
    if root is None:
        return ""
    reader = _Reader("value", "set", False, os.environ)
    value = reader.node(root, ())
    if reader.reading.problems:
        raise StrategyError(reader.reading.problems)
    return value


def _compose(text: str, name: str) -> Node | None:
    parser = YAML(typ="safe", pure=True)
    try:
        return parser.compose(text)  # type: ignore[no-any-return]  # ruamel.yaml's compose is not annotated
    except RecursionError:
        raise StrategyError.of("LF-STRATEGY-002", "nested too deeply", where=name) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise StrategyError.of("LF-STRATEGY-004", f"not YAML: {error.problem or error.context}", where=where) from None
    except YAMLError as error:
        raise StrategyError.of("LF-STRATEGY-004", f"not YAML: {str(error).splitlines()[0]}", where=name) from None


class _Reader:
    """Turns composed nodes into plain values and records where each stood."""

    def __init__(self, name: str, kind: Kind, preset: bool, environ: Mapping[str, str]) -> None:
        self.name, self.kind, self.preset, self.environ = name, kind, preset, environ
        self.reading = Reading()
        self.scalars = YAML(typ="safe", pure=True).constructor
        self.nodes = 0

    def read(self, root: MappingNode) -> Reading:
        self.reading.origins[()] = Origin(self.kind, f"{self.name}:1:1", preset=self.preset)
        self.reading.values = self.mapping(root, ())
        return self.reading

    def place(self, node: Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def node(self, node: Node, path: Path, key: Node | None = None) -> Any:
        self.nodes += 1
        if self.nodes > _MAX_NODES or len(path) > _MAX_DEPTH:
            raise StrategyError.of(
                "LF-STRATEGY-002", "too many or too deeply nested values (aliases counted)", where=self.place(node)
            )
        origin = Origin(self.kind, self.place(node), self.place(key) if key else "", preset=self.preset)
        if isinstance(node, MappingNode):
            value: Any = self.mapping(node, path)
        elif isinstance(node, SequenceNode) and node.tag == f"{_CORE}seq":
            value = [self.node(inner, (*path, index)) for index, inner in enumerate(node.value)]
        elif isinstance(node, ScalarNode) and node.tag in _PLAIN_SCALARS | _TEXT_SCALARS:
            value, origin = self.scalar(node, origin)
        else:
            self.reading.problems.append(
                Problem("LF-STRATEGY-006", f"the tag {node.tag!r} is not data", origin.place, "remove the tag")
            )
            value = None
        self.reading.origins[path] = origin
        return value

    def scalar(self, node: ScalarNode, origin: Origin) -> tuple[Any, Origin]:
        if node.tag in _PLAIN_SCALARS:
            return self.scalars.construct_object(node), origin
        text: str = node.value
        if "${" not in text:
            return text, origin
        value, problems = expand(text, self.environ, origin.place)
        self.reading.problems.extend(problems)
        return value, Origin(origin.kind, origin.place, origin.key_place, text=text, preset=origin.preset)

    def mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        if node.tag != f"{_CORE}map":
            self.reading.problems.append(
                Problem("LF-STRATEGY-006", f"the tag {node.tag!r} is not data", self.place(node), "remove the tag")
            )
            return {}
        result: dict[str, Any] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            if key_node.value == "<<" and isinstance(key_node, ScalarNode):
                merged.extend(value_node.value if isinstance(value_node, SequenceNode) else [value_node])
                continue
            key = key_node.value if isinstance(key_node, ScalarNode) else None
            if key is None:
                self.reading.problems.append(
                    Problem("LF-STRATEGY-007", "a key must be a plain word", self.place(key_node))
                )
                continue
            if key in result:
                self.duplicate(key, (*path, key), result[key], key_node, value_node)
                continue
            result[key] = self.node(value_node, (*path, key), key_node)
        for source in merged:
            if isinstance(source, MappingNode):
                for key_node, value_node in source.value:
                    if key_node.value not in result:
                        result[key_node.value] = self.node(value_node, (*path, key_node.value), key_node)
        return result

    def duplicate(self, key: str, path: Path, first: Any, key_node: Node, value_node: Node) -> None:
        """Same key twice: harmless and said when the values agree, an error with both places when not."""
        first_place = self.reading.origins[path].key_place
        second = _Reader(self.name, self.kind, self.preset, self.environ).node(value_node, ())
        if second == first:
            self.reading.notices.append(
                f"{self.place(key_node)}: {dotted(path)} stands twice with the same value (first at {first_place})"
            )
            return
        self.reading.problems.append(
            Problem(
                "LF-STRATEGY-008",
                f"the key {key!r} stands twice and differs: {first!r} (at {first_place}), {second!r}",
                self.place(key_node),
                "keep one",
            )
        )
