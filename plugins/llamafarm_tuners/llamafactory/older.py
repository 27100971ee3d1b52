"""A model's files as transformers 4 reads them: what version 5 writes under other names, it would not find there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamafarm.errors import StrategyError

_ROPE = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
}
"""Names of the rotary embedding's figures where a model's configuration has its own."""
_SPELLED_ANEW = ("config.json", "tokenizer_config.json")


def older_files(source: Path, folder: Path) -> Path:
    """Put a model's files into a folder: both descriptions in the older words, and links to all others.

    Args:
        source: The model's folder.
        folder: Where to put them; made here.

    Returns:
        That folder; or `source` if it is written in the older words already.

    Raises:
        StrategyError: If the model cannot be said in them.
    """
    described = {name: _read(source / name) for name in _SPELLED_ANEW}
    has_tokenizer = (source / "tokenizer.json").is_file()
    older = {
        "config.json": older_config(described["config.json"], str(source)),
        "tokenizer_config.json": older_tokenizer(described["tokenizer_config.json"], has_tokenizer=has_tokenizer),
    }
    if older == described:
        return source
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.name not in _SPELLED_ANEW and path.is_file():
            (folder / path.name).symlink_to(path.absolute())
    for name, values in older.items():
        if values:
            (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return folder


def older_config(config: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """`config.json` in the older words.

    Raises:
        StrategyError: If its layers have rotary embeddings of several kinds.
    """
    found = {name: value for name, value in config.items() if name not in ("rope_parameters", "dtype")}
    if "dtype" in config:
        found["torch_dtype"] = config["dtype"]
    rope = dict(config.get("rope_parameters") or {})
    if any(isinstance(value, Mapping) for value in rope.values()):
        message = "the model's layers have rotary embeddings of several kinds, which transformers 4 does not read"
        raise StrategyError.of("LF-STRATEGY-101", message, where=where, hint="use another model for stage ppo")
    names = _ROPE.get(str(config.get("model_type")), {})
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rope:
            found[names.get(name, name)] = rope.pop(name)
    if rope.get("rope_type", "default") != "default":
        found["rope_scaling"] = rope
    return found


def older_tokenizer(config: Mapping[str, Any], *, has_tokenizer: bool) -> dict[str, Any]:
    """`tokenizer_config.json` in the older words; `tokenizer.json` holds everything else, if there is one."""
    found = {name: value for name, value in config.items() if name not in ("backend", "extra_special_tokens")}
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):
        found["additional_special_tokens"] = extra
    elif extra is not None:
        found["extra_special_tokens"] = extra
    if has_tokenizer and ("backend" in config or config.get("tokenizer_class") == "TokenizersBackend"):
        found["tokenizer_class"] = "PreTrainedTokenizerFast"
    return found


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
