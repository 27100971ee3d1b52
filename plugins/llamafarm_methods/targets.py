"""Which layers of a model an adapter goes to. Works on names alone."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from types import MappingProxyType
from typing import Any

from llamafarm.errors import LlamaFarmError, ModelError, nearest

EVERYTHING = frozenset({"auto", "all", "all-linear"})
"""Words for all linear layers but the output head."""

TIERS = MappingProxyType(
    {
        "conservative": frozenset({"query", "value"}),
        "balanced": frozenset({"query", "key", "value"}),
        "aggressive": frozenset(),
    }
)
"""Tier → the attention projections that it adapts; the last one adapts every linear layer but the output head."""

_ROLES = MappingProxyType(
    {
        "query": frozenset({"q_proj", "query", "q_lin", "wq", "q"}),
        "key": frozenset({"k_proj", "key", "k_lin", "wk", "k"}),
        "value": frozenset({"v_proj", "value", "v_lin", "wv", "v"}),
    }
)
_FUSED = frozenset({"qkv_proj", "query_key_value", "c_attn", "Wqkv", "in_proj", "qkv", "W_pack", "wqkv", "att_proj"})
"""Projections that hold query, key and value in one matrix: each role is in them."""

_PATTERN_CHARACTERS = re.compile(r"[\\^$*+?()\[\]|]")
_SIMPLE_PATTERN = re.compile(r"(?!.*\)[*+?{])[\w.^$*+\\()|\[\]-]{1,200}")


def parse_targets(value: Any) -> Any:
    """Bring the accepted spellings of a list of layers into one: a tuple, a keyword or a pattern.

    Raises:
        ValueError: If a string is neither.
    """
    if isinstance(value, str) and (text := value.strip()) in EVERYTHING | TIERS.keys():
        return text
    return parse_names(value)


def parse_names(value: Any) -> Any:
    """Bring the accepted spellings of a list of names into one: a tuple or a pattern.

    Raises:
        ValueError: If a string is neither.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("[") and text.endswith("]"):
        return tuple(json.loads(text))
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
        return _leaves_but(body, head)
    if isinstance(targets, str) and targets in TIERS:
        return _tier(targets, body, head)
    if isinstance(targets, str):
        matched = sorted(path for path in body if re.fullmatch(targets, path))
        if not matched:
            raise _nothing([targets], layers)
        return matched
    if missing := [name for name in targets if not matching(name, layers)]:
        raise _nothing(missing, layers)
    return sorted(set(targets))


def named(names: str | Sequence[str], layers: Sequence[str], what: str) -> set[str]:
    """Paths of the layers that a pattern or a list of names means.

    Raises:
        ModelError: If one of them matches nothing; `what` is the option's name.
    """
    if isinstance(names, str):
        found = {path for path in layers if re.fullmatch(rf"(.*\.)?({names})", path)}
        missing = [] if found else [names]
    else:
        found = {path for name in names for path in matching(name, layers)}
        missing = [name for name in names if not matching(name, layers)]
    if missing:
        raise _nothing(missing, layers, what)
    return found


def _tier(tier: str, body: Sequence[str], head: str | None) -> list[str]:
    roles = TIERS[tier]
    if not roles:
        return _leaves_but(body, head)
    wanted = _FUSED.union(*(_ROLES[role] for role in roles))
    chosen = sorted({leaf for path in body if (leaf := _leaf(path)) in wanted})
    if not chosen:
        raise ModelError.of(
            "LF-MODEL-071",
            f"target_modules {tier!r}: this model's attention projections have other names than we know",
            hint=f"name them: its linear layers are {', '.join(_leaves(body))}",
        )
    return chosen


def _leaves_but(body: Sequence[str], head: str | None) -> list[str]:
    """Leaf names, which stay readable in the saved adapter; whole paths where a leaf would take the head too."""
    return _leaves(body) if head is None or _leaf(head) not in _leaves(body) else sorted(body)


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


def _nothing(missing: Sequence[str], layers: Sequence[str], what: str = "target_modules") -> LlamaFarmError:
    existing = _leaves(layers)
    guesses = [guess for name in missing if (guess := nearest(name, existing))]
    hint = f"{guesses[0]} " if guesses else ""
    return ModelError.of(
        "LF-MODEL-020",
        f"{what} {', '.join(map(repr, missing))}: no layer of this model has that name",
        hint=f"{hint}its linear layers are {', '.join(existing)}; 'auto' takes all but the output head",
    )
