"""Nested values with tensors in them → plain JSON and a table of named tensors, and back. Never a pickle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

_MARKS = frozenset({"$tensor", "$tuple", "$items", "$float"})


def pack(value: Any, tensors: dict[str, torch.Tensor], path: str) -> Any:
    """Describe a value in plain JSON, putting its tensors into `tensors` under names that start with `path`.

    Tuples, mappings with keys that are no text, and floats that JSON has no word for come back as they were.

    Raises:
        TypeError: For anything else than None, booleans, numbers, text, sequences, mappings and tensors.
    """
    if isinstance(value, torch.Tensor):
        tensors[path] = value
        return {"$tensor": path}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        items = [pack(item, tensors, f"{path}.{index}") for index, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key not in _MARKS for key in value):
            return {key: pack(item, tensors, f"{path}.{key}") for key, item in value.items()}
        return {"$items": [[pack(key, {}, ""), pack(item, tensors, f"{path}.{key}")] for key, item in value.items()]}
    raise TypeError(f"{path}: a {type(value).__name__} cannot be kept in a checkpoint")


def unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Make the value again that `pack` described."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and (mark := next(iter(value))) in _MARKS:
        return _marked(mark, value[mark], tensors)
    return {key: unpack(item, tensors) for key, item in value.items()}


def _marked(mark: str, inner: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if mark == "$tensor":
        return tensors[inner]
    if mark == "$float":
        return float(inner)
    if mark == "$tuple":
        return tuple(unpack(item, tensors) for item in inner)
    return {unpack(key, {}): unpack(item, tensors) for key, item in inner}


def copied(value: Any, device: str | None = None) -> Any:
    """The same nested value with tensors of its own, on a device if one is given."""
    tensors: dict[str, torch.Tensor] = {}
    described = pack(value, tensors, "")
    return unpack(described, {name: _copy(tensor, device) for name, tensor in tensors.items()})


def size(value: Any) -> int:
    """Bytes of all tensors in a nested value."""
    tensors: dict[str, torch.Tensor] = {}
    pack(value, tensors, "")
    return sum(tensor.nbytes for tensor in tensors.values())


def _copy(tensor: torch.Tensor, device: str | None) -> torch.Tensor:
    return tensor.detach().clone() if device is None else tensor.detach().to(device, copy=True)
