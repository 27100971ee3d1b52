"""What a model folder may say before anything in it is loaded: it is data, and never chooses code or other files.

Reads JSON and file names alone. A folder that was trusted with `--trust-remote-code` is not looked at here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version

from llamafarm.errors import ModelError, SecurityError

_CONFIG_BYTES = 16_000_000
_DEPTH = 32
_WORD = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,199}")
_CHOOSES_CODE = frozenset(
    {
        "_attn_implementation_internal",
        "_experts_implementation_internal",
        "allow_all_kernels",
        "custom_generate",
        "kernel_config",
        "trust_remote_code",
        "use_kernels",
    }
)
"""Keys by which a file would decide what code runs, or whether it is trusted. No model needs them."""

_KERNELS = frozenset({"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "paged_attention"})
_EXPERTS = frozenset({"eager", "batched_mm", "grouped_mm"})
_LARGEST = {"layers": 4096, "size": 1 << 26, "heads": 1 << 16}
"""Upper bounds of what a configuration may ask memory for, by the word in the key."""

_FLOORS = {
    "transformers": ("5.3", "below 5.3 a model's config.json can load code (CVE-2026-4372, CVE-2026-5241)"),
    "jinja2": ("3.1.6", "below 3.1.6 a chat template can leave its sandbox (CVE-2025-27516)"),
    "torch": ("2.10", "below 2.10 a file can corrupt memory where it is loaded (CVE-2026-24747)"),
}
"""Library → its oldest version without a hole that files reach, and that hole."""

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5", "*.msgpack")


@cache
def require_floors() -> None:
    """Check that the libraries that load models have no known hole; reads their metadata only.

    Raises:
        SecurityError: If one is older.
    """
    for name, (oldest, hole) in _FLOORS.items():
        found = version(name)
        if Version(found) < Version(oldest):
            hint = f"pip install '{name}>={oldest}'"
            raise SecurityError.of("LF-SECURITY-011", f"{name} {found} is installed: {hole}", hint=hint)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        ModelError: If it is too large, nested too deeply, or no JSON object.
    """
    try:
        if path.stat().st_size > _CONFIG_BYTES:
            raise _unusable(path, f"has more than {_CONFIG_BYTES:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _unusable(path, f"cannot be read: {error}") from None
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        raise _unusable(path, "holds no JSON object")
    return content


def check_folder(folder: Path) -> None:
    """Check what the files of a model folder (or of a snapshot in the hub's cache) say; loads nothing.

    Raises:
        ModelError: If a configuration cannot be read, or asks for absurd sizes.
        SecurityError: If a file chooses code, or leads out of the folder.
    """
    _check_links(folder)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            _check_config(path, read_json(path))
    _check_tokenizer(folder / "tokenizer_config.json")
    for index in sorted(folder.glob("*.index.json")):
        _check_index(index)


def require_safetensors(folder: Path, given: str) -> None:
    """Refuse a model whose weights are pickles only: reading one can run code.

    Raises:
        ModelError: If there are no safetensors.
    """
    if any(folder.glob("*.safetensors")):
        return
    found = sorted({path.name for pattern in _PICKLES for path in folder.glob(pattern)})
    if found:
        hint = "load it once where you trust it, and save it with save_pretrained: that writes safetensors"
        raise ModelError.of("LF-MODEL-170", f"{given} has no safetensors, only {', '.join(found[:3])}", hint=hint)


def is_plain_name(name: Any) -> bool:
    """Whether a text names a file in a folder, and nothing else."""
    return isinstance(name, str) and _PLAIN_NAME.fullmatch(name) is not None


def _check_links(folder: Path) -> None:
    """No file may be a link to one outside; in the hub's cache, links lead to the blobs beside the snapshots."""
    inside = folder.resolve()
    cache = inside.parent.parent if inside.parent.name == "snapshots" else inside
    for path in folder.iterdir():
        if path.is_symlink() and path.is_file():
            target = path.resolve()
            if not target.is_relative_to(inside) and not target.is_relative_to(cache):
                hint = "put the file itself into the folder: cp -L"
                message = f"{path.name} is a link out of the model folder"
                raise SecurityError.of("LF-SECURITY-004", message, where=str(folder), hint=hint)


def _check_config(path: Path, content: Mapping[str, Any]) -> None:
    for key, value in _entries(path, content):
        if key in _CHOOSES_CODE:
            hint = f"take the key out of {path.name}, or another model"
            message = f"the key {key!r} would choose what code runs"
            raise SecurityError.of("LF-SECURITY-003", message, where=str(path), hint=hint)
        if not key.isprintable():
            raise _unusable(path, f"the key {key!r} is no name")
        if key.endswith("attn_implementation"):
            _check_choice(path, key, value, _KERNELS)
        elif key.endswith("experts_implementation"):
            _check_choice(path, key, value, _EXPERTS)
        elif key in ("model_type", "tokenizer_class") and value is not None:
            _check_word(path, key, value)
        elif key == "architectures":
            for name in value if isinstance(value, list) else [value]:
                _check_word(path, key, name)
        _check_size(path, key, value)


def _check_choice(path: Path, key: str, value: Any, known: frozenset[str]) -> None:
    for choice in value.values() if isinstance(value, dict) else [value]:
        if choice is not None and choice not in known:
            message = f"{key!r} is {_short(choice)}: a file does not choose kernels from elsewhere"
            raise SecurityError.of("LF-SECURITY-003", message, where=str(path), hint="take the key out")


def _check_word(path: Path, key: str, value: Any) -> None:
    if value is not None and not (isinstance(value, str) and _WORD.fullmatch(value)):
        raise _unusable(path, f"{key!r} is {_short(value)}, which is no name")


def _check_size(path: Path, key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        return
    limit = next((most for word, most in _LARGEST.items() if key.endswith(word)), None)
    if limit is not None and not -1 <= value <= limit:
        raise _unusable(path, f"{key!r} is {_short(value)}, more than any model has ({limit:,})")


def _check_tokenizer(path: Path) -> None:
    if not path.is_file():
        return
    names = read_json(path).get("fast_tokenizer_files") or []
    if not isinstance(names, list) or not all(is_plain_name(name) for name in names):
        message = "'fast_tokenizer_files' names files outside the model folder"
        raise SecurityError.of("LF-SECURITY-004", message, where=str(path), hint="take the key out")


def _check_index(path: Path) -> None:
    """The parts of sharded weights are safetensors beside the index."""
    if not path.name.endswith(".safetensors.index.json"):
        return  # an index of pickles is never read
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict):
        raise _unusable(path, "has no weight_map")
    for name in {_short(name): name for name in places.values()}.values():
        if not is_plain_name(name) or not name.endswith(".safetensors"):
            message = f"{_short(name)} is no safetensors file of this folder"
            raise SecurityError.of("LF-SECURITY-004", message, where=str(path))


def _entries(path: Path, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    if depth > _DEPTH:
        raise _unusable(path, "is nested too deeply")
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _entries(path, inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(path, inner, depth + 1)


def _short(value: Any) -> str:
    return repr(value)[:60] if isinstance(value, str) else str(value)[:60]


def _unusable(path: Path, reason: str) -> ModelError:
    return ModelError.of("LF-MODEL-172", f"{path.name} {reason}", where=str(path))
