"""Tokenized rows, kept for the next run on the same data with the same tokenizer. Nothing breaks without them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, fields
from datetime import date
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llamafarm.api import Example
from llamafarm.data.fit import IGNORED, TokenizedRow
from llamafarm.data.tokens import Loss, Tokenized
from llamafarm.files import replacing
from llamafarm.models.trl_templates import training_template

_UNUSED_DAYS = 30
_NOT_TOKENIZED = {"ref", "difficulty"}
_ARRAYS = ("input_ids", "learned", "lengths", "examples")


def cache_folder() -> Path:
    """Where tokenized rows are kept: below `LLAMAFARM_HOME`, else in the platform's cache folder."""
    if given := os.environ.get("LLAMAFARM_HOME"):
        return Path(given) / "cache" / "tokens"
    from platformdirs import user_cache_path

    return user_cache_path("llamafarm") / "tokens"


def cache_file(examples: Sequence[Example], tokenizer: Any, options: Mapping[str, Any]) -> Path | None:
    """The file for these examples, this tokenizer, these options of `tokenize`, and this version of our code.

    None for a tokenizer in Python, whose behaviour no file describes.
    """
    if not tokenizer.is_fast:
        return None
    template = json.dumps(tokenizer.chat_template, sort_keys=True)
    total = blake2b(digest_size=16)
    libraries = [version(name) for name in ("jinja2", "tokenizers", "transformers")]
    today = date.today().isoformat() if "strftime_now" in template else ""  # noqa: DTZ011  # the template's own day
    templates = (
        tokenizer.chat_template.values() if isinstance(tokenizer.chat_template, dict) else [tokenizer.chat_template]
    )
    trained = [training_template(one) for one in templates if one]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    for part in (dict(options), _code(), libraries, type(tokenizer).__name__, special, template, trained, today):
        total.update(json.dumps(part, sort_keys=True).encode() + b"\0")
    total.update(tokenizer.backend_tokenizer.to_str().encode())
    names = [field.name for field in fields(Example) if field.name not in _NOT_TOKENIZED]
    for example in examples:
        total.update(repr([getattr(example, name) for name in names]).encode("utf-8", "surrogatepass") + b"\0")
    return cache_folder() / f"{total.hexdigest()}.safetensors"


def read(path: Path) -> Tokenized | None:
    """What was kept; None if there is nothing, or not what was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in _ARRAYS}
        if about["digest"] != _digest(arrays, about["counts"], about["losses"], about["audit"]):
            return None
        os.utime(path)
    except (OSError, SafetensorError, KeyError):
        return None
    losses = {index: Loss(*loss) for index, *loss in json.loads(about["losses"])}
    return Tokenized(_rows(arrays), json.loads(about["counts"]), losses, about["audit"])


def write(path: Path, tokenized: Tokenized) -> None:
    """Keep rows, and remove what nobody has used for a month; a disk that refuses is no reason to fail."""
    import numpy as np
    from safetensors.numpy import save

    rows = tokenized.rows
    arrays = {
        "input_ids": np.array([token for row in rows for token in row.input_ids], dtype=np.int32),
        "learned": np.array([label != IGNORED for row in rows for label in row.labels], dtype=np.uint8),
        "lengths": np.array([len(row.input_ids) for row in rows], dtype=np.int32),
        "examples": np.array([row.example for row in rows], dtype=np.int32),
    }
    counts = json.dumps(dict(tokenized.counts))
    losses = json.dumps([[index, *astuple(loss)] for index, loss in tokenized.losses.items()])
    about = {"counts": counts, "losses": losses, "audit": tokenized.audit}
    about["digest"] = _digest(arrays, *about.values())
    with suppress(OSError):
        with replacing(path) as (file,):
            file.write(save(arrays, about))
        for old in path.parent.glob("*.safetensors"):
            if old.stat().st_mtime < time.time() - _UNUSED_DAYS * 24 * 3600:
                old.unlink()


def _rows(arrays: Mapping[str, Any]) -> list[TokenizedRow]:
    ids: list[int] = arrays["input_ids"].tolist()
    learned: list[int] = arrays["learned"].tolist()
    labels = [token if on else IGNORED for token, on in zip(ids, learned, strict=True)]
    rows, start = [], 0
    for length, example in zip(arrays["lengths"].tolist(), arrays["examples"].tolist(), strict=True):
        rows.append(TokenizedRow(ids[start : start + length], labels[start : start + length], example))
        start += length
    return rows


def _digest(arrays: Mapping[str, Any], *texts: str) -> str:
    total = blake2b("\0".join(texts).encode(), digest_size=16)
    for name in _ARRAYS:
        total.update(arrays[name].tobytes())
    return total.hexdigest()


@cache
def _code() -> str:
    """A digest of the code that makes tokens: a changed line, and nothing kept before it is used."""
    total = blake2b(digest_size=16)
    ours = Path(__file__).parents[1]
    for path in sorted(path for folder in ("data", "models") for path in (ours / folder).rglob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()
