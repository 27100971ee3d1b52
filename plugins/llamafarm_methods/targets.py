"""Which layers of a model an adapter goes to. Works on names alone."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from llamafarm.errors import LlamaFarmError, ModelError, nearest

EVERYTHING = frozenset({"auto", "all", "all-linear"})
"""Words for all linear layers but the output head."""

_PATTERN_CHARACTERS = re.compile(r"[\\^$*+?()\[\]|]")
_SIMPLE_PATTERN = re.compile(r"(?!.*\)[*+?{])[\w.^$*+\\()|\[\]-]{1,200}")


def parse_targets(value: Any) -> Any:
    """Bring the accepted spellings of a list of names into one: a tuple, a keyword or a pattern.

    Raises:
        ValueError: If a string is neither.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("[") and text.endswith("]"):
        return tuple(json.loads(text))
    if text in EVERYTHING:
        return text
    if _PATTERN_CHARACTERS.search(text):
        return _pattern(text)
    names = tuple(re.split(r"[,\s]+", text.strip(", ")))
    if not all(names):
        raise ValueError("no layer is named")
    return names


def resolve_targets(targets: str | Sequence[str], layers: Sequence[str], head: str | None) -> list[str]:
    """Turn targets into names for PEFT: leaf names where they are exact, whole paths for patterns.

    Args:
        targets: As `parse_targets` returns them.
        layers: Paths of all modules that can be adapted.
        head: Path of the output head.

    Returns:
        Sorted names; each matches at least one layer.

    Raises:
        ModelError: If one of them matches nothing.
    """
    body = [path for path in layers if path != head]
    if isinstance(targets, str) and targets in EVERYTHING:
        return _leaves(body) if head is None or _leaf(head) not in _leaves(body) else sorted(body)
    if isinstance(targets, str):
        matched = sorted(path for path in body if re.fullmatch(targets, path))
        if not matched:
            raise _nothing([targets], layers)
        return matched
    if missing := [name for name in targets if not matching(name, layers)]:
        raise _nothing(missing, layers)
    return sorted(set(targets))


def matching(name: str, paths: Iterable[str]) -> list[str]:
    """Paths that end in `name`, whole components only: PEFT's own rule."""
    return [path for path in paths if path == name or path.endswith(f".{name}")]


def in_layers(path: str, layers: Collection[int], layer_list: str | None) -> bool:
    """Whether a path lies in one of the numbered transformer layers (the first number after the list's name)."""
    numbered = re.match(rf"(?:^|.*?\.){re.escape(layer_list) if layer_list else '[^.]+'}\.(\d+)\.", path)
    return bool(numbered) and int(numbered[1]) in layers if numbered else False


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a valid pattern: {error}") from error
    if not _SIMPLE_PATTERN.fullmatch(text):
        raise ValueError("a pattern may use names, '.', '*', '|', brackets and groups that are not repeated")
    return text


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _leaves(paths: Iterable[str]) -> list[str]:
    return sorted({_leaf(path) for path in paths})


def _nothing(missing: Sequence[str], layers: Sequence[str]) -> LlamaFarmError:
    existing = _leaves(layers)
    guesses = [guess for name in missing if (guess := nearest(name, existing))]
    hint = f"{guesses[0]} " if guesses else ""
    return ModelError.of(
        "LF-MODEL-020",
        f"target_modules {', '.join(map(repr, missing))}: no layer of this model has that name",
        hint=f"{hint}its linear layers are {', '.join(existing)}; 'auto' takes all but the output head",
    )
