"""Every resolved value with its origin; secrets never among them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, SecretStr

from llamafarm.core.environment import secret_values
from llamafarm.core.layers import Origin, Path, dotted
from llamafarm.core.load import Loaded

REDACTED = "<redacted>"
DEFAULT = Origin("default", "default")


@dataclass(frozen=True, slots=True)
class Resolved:
    """One value of the strategy.

    Attributes:
        path: Where it stands in the canonical strategy.
        value: A plain JSON value; for a secret its `${NAME}` text, or a placeholder.
        origin: Where it comes from.
    """

    path: Path
    value: Any
    origin: Origin

    @property
    def key(self) -> str:
        """The dotted path."""
        return dotted(self.path)


def explain(loaded: Loaded) -> list[Resolved]:
    """All leaves of the validated strategy, in the order of the model."""
    return [
        Resolved(_as_written(path), _plain(value, loaded.origins.get(path)), loaded.origins.get(path, DEFAULT))
        for path, value in _leaves(loaded.strategy, ())
    ]


def _as_written(path: Path) -> Path:
    """Device blocks are flat in a strategy: `optimization.cuda.bf16`."""
    return (*path[:2], path[-1]) if path[0] == "optimization" and len(path) > 3 else path


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _leaves(getattr(value, name), (*path, name))
    elif isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, tuple) and any(isinstance(inner, BaseModel) for inner in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, value


def _plain(value: Any, origin: Origin | None) -> Any:
    if isinstance(value, SecretStr):
        return origin.text if origin is not None and origin.text else REDACTED
    return list(value) if isinstance(value, tuple) else value


def secrets(loaded: Loaded) -> tuple[str, ...]:
    """Every secret of the strategy and of the environment, which a strategy may have quoted; longest first."""
    values = (value.get_secret_value() for _, value in _leaves(loaded.strategy, ()) if isinstance(value, SecretStr))
    known = {*(value for value in values if value), *secret_values(os.environ)}
    return tuple(sorted(known, key=len, reverse=True))


def redact(text: str, hidden: tuple[str, ...]) -> str:
    """`text` without the secrets."""
    for secret in hidden:
        text = text.replace(secret, REDACTED)
    return text


def _portable(origin: Origin) -> str:
    """The origin without the folders of an absolute path: the file leaves this machine with the run."""
    return str(replace(origin, place=origin.place.rpartition("/")[2]) if origin.place.startswith("/") else origin)


def resolved_yaml(loaded: Loaded) -> str:
    """The resolved strategy as YAML, each value with a comment that says where it comes from."""
    from io import StringIO

    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    def child(parent: Any, part: str | int, following: str | int) -> Any:
        fresh: Any = CommentedSeq() if isinstance(following, int) else CommentedMap()
        if isinstance(parent, CommentedSeq):
            while len(parent) <= int(part):
                parent.append(fresh)
            return parent[int(part)]
        return parent.setdefault(part, fresh)

    root = CommentedMap()
    for resolved in explain(loaded):
        node: Any = root
        for part, following in zip(resolved.path, resolved.path[1:], strict=False):
            node = child(node, part, following)
        node[resolved.path[-1]] = resolved.value
        node.yaml_add_eol_comment(f"from: {_portable(resolved.origin)}", resolved.path[-1])
    stream = StringIO()
    writer = YAML()
    writer.width = 10_000
    writer.dump(root, stream)
    return stream.getvalue()
