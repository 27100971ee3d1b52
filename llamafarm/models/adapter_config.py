"""What an adapter's configuration may say: how it was built, and never which code or which other files to load."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llamafarm.api import BaseModelConfig
from llamafarm.errors import ModelError, SecurityError
from llamafarm.models.hub import is_cached
from llamafarm.models.locate import locate
from llamafarm.models.safety import read_json

FILE = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_CHOOSES_CODE = frozenset({"auto_mapping", "megatron_config", "runtime_config", "trust_remote_code"})
_OF_TRANSFORMERS = re.compile(r"transformers\.models\.\w+\.modeling_\w+")
_OTHER_FILES = frozenset(
    {"adapters", "cache_file", "covariance_file", "layer_replication", "prompt_tuning_init_state_dict_path"}
)
"""Keys by which other files would be read, or layers multiplied; empty ones say nothing."""
_MEGATRON = "megatron.core"
_TYPES_OF_OTHERS = frozenset({"XLORA"})
_LARGEST_RANK = 1 << 16
_LONGEST_PATTERN = 2000
_RANKS = ("r", "rank", "target_r", "init_r")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """An adapter's configuration, checked.

    Raises:
        ModelError: If it cannot be read, or its sizes are none.
        SecurityError: If it chooses code or other files.
    """
    path = folder / FILE
    described = read_json(path)
    for key, value in _entries(described):
        empty = value is None or value in ({}, [], "", False)
        if key == "auto_mapping" and _names_transformers(value):
            continue
        if (key in _CHOOSES_CODE or key in _OTHER_FILES) and not empty:
            raise _refused(path, f"the key {key!r} would load something else than this adapter")
        if key == "megatron_core" and value not in (None, _MEGATRON):
            raise _refused(path, f"the key {key!r} would import {str(value)[:60]!r}")
        if key in _RANKS or key in ("rank_pattern", "alpha_pattern", "lora_alpha", "num_virtual_tokens"):
            _check_sizes(path, key, value)
        if key in ("target_modules", "exclude_modules", "target_parameters", "layers_pattern"):
            _check_pattern(path, key, value)
    if str(described.get("peft_type")).upper() in _TYPES_OF_OTHERS:
        raise _refused(path, "an adapter of this kind loads other adapters")
    base = described.get("base_model_name_or_path")
    if base is not None and not (isinstance(base, str) and base.isprintable()):
        raise _unusable(path, f"'base_model_name_or_path' is {str(base)[:60]!r}, which is no name")
    return described


def base_named_by(folder: Path) -> str | None:
    """The base that an adapter names; None if it names none.

    Raises:
        ModelError: If its configuration cannot be read.
        SecurityError: If it chooses code or other files.
    """
    return str(read_adapter_config(folder).get("base_model_name_or_path") or "") or None


def require_base_here(name: str, config: BaseModelConfig, given: str) -> None:
    """The base that an adapter names has to be here already: an adapter never makes us fetch a model.

    Raises:
        SecurityError: If it would have to be downloaded.
    """
    if locate(name).kind == "hub" and not is_cached(name, config):
        message = f"the adapter in {given} names the base {name!r}, which is not here"
        hint = f"fetch it yourself if that is what you want: hf download {name}"
        raise SecurityError.of("LF-SECURITY-006", message, hint=hint)


def require_weights(folder: Path, given: str) -> None:
    """Refuse an adapter whose weights are a pickle.

    Raises:
        ModelError: If there are no safetensors.
    """
    if not (folder / WEIGHTS).is_file():
        found = next((name for name in ("adapter_model.bin", "adapter_model.pt") if (folder / name).exists()), "")
        what = f"only {found}, whose reading can run code" if found else "no weights"
        hint = f"save it again as {WEIGHTS}"
        raise ModelError.of("LF-MODEL-171", f"the adapter in {given} has {what}", hint=hint)


def _names_transformers(mapping: Any) -> bool:
    """PEFT writes so where an adapter has no task: a class of transformers itself, which is no foreign code."""
    return (
        isinstance(mapping, Mapping)
        and mapping.keys() <= {"base_model_class", "parent_library"}
        and bool(_OF_TRANSFORMERS.fullmatch(str(mapping.get("parent_library"))))
        and str(mapping.get("base_model_class")).isidentifier()
    )


def _check_sizes(path: Path, key: str, value: Any) -> None:
    for size in value.values() if isinstance(value, dict) else [value]:
        if isinstance(size, list) and all(isinstance(kept, bool) for kept in size) and len(size) <= _LARGEST_RANK:
            continue  # so AdaLoRA says which of a layer's ranks are left
        number = isinstance(size, (int, float)) and not isinstance(size, bool)
        if size is not None and not (number and 0 <= size <= _LARGEST_RANK):  # a NaN is in no range
            raise _unusable(path, f"{key!r} is {str(value)[:60]}, and no rank or scale can be that")


def _check_pattern(path: Path, key: str, value: Any) -> None:
    names = value if isinstance(value, list) else [value]
    if not all(name is None or (isinstance(name, str) and len(name) <= _LONGEST_PATTERN) for name in names):
        raise _unusable(path, f"{key!r} holds something that is no name of a module")


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    pending = [value]
    while pending:
        node = pending.pop()
        if isinstance(node, Mapping):
            yield from node.items()
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)


def _refused(path: Path, message: str) -> SecurityError:
    return SecurityError.of("LF-SECURITY-005", message, where=str(path), hint="take the key out, or another adapter")


def _unusable(path: Path, message: str) -> ModelError:
    return ModelError.of("LF-MODEL-174", message, where=str(path))
