"""Tokenized rows, kept for the next run on the same data with the same tokenizer. Nothing breaks without them."""

from __future__ import annotations

import json
import os
import time
from array import array
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
from llamafarm.data.stored import TokenRows
from llamafarm.data.tokens import Loss, Tokenized
from llamafarm.files import replacing
from llamafarm.models.trl_templates import training_template

_UNUSED_DAYS = 30
_NOT_TOKENIZED = {"ref", "difficulty"}
_ARRAYS = {"input_ids": ("I32", 4), "learned": ("U8", 1), "lengths": ("I32", 4), "examples": ("I32", 4)}
"""Name → format and bytes of a number."""
_ROWS = 1000
"""Rows that are read at a time."""


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
            lengths, examples = (file.get_tensor(name).tolist() for name in ("lengths", "examples"))
            ids, learned = file.get_slice("input_ids"), file.get_slice("learned")
            if ids.get_shape() != [sum(lengths)] or learned.get_shape() != [sum(lengths)]:
                return None
            rows, total, start = TokenRows(), _Digest(about), 0
            for first in range(0, len(lengths), _ROWS):
                sizes = lengths[first : first + _ROWS]
                end = start + sum(sizes)
                some_ids, some_learned, start = ids[start:end].tobytes(), learned[start:end].tobytes(), end
                at = 0
                for size, example in zip(sizes, examples[first : first + _ROWS], strict=True):
                    parts = some_ids[4 * at : 4 * (at + size)], some_learned[at : at + size]
                    rows.append_packed(*parts, example)
                    total.add(parts, example)
                    at += size
        if about["digest"] != total.hexdigest():
            return None
        os.utime(path)
    except (OSError, SafetensorError, KeyError):
        return None
    losses = {index: Loss(*loss) for index, *loss in json.loads(about["losses"])}
    return Tokenized(rows, json.loads(about["counts"]), losses, about["audit"])


def write(path: Path, tokenized: Tokenized) -> None:
    """Keep rows, and remove what nobody has used for a month; a disk that refuses is no reason to fail."""
    rows = tokenized.rows
    counts = json.dumps(dict(tokenized.counts))
    losses = json.dumps([[index, *astuple(loss)] for index, loss in tokenized.losses.items()])
    about = {"counts": counts, "losses": losses, "audit": tokenized.audit}
    total = _Digest(about)
    for number, example in enumerate(rows.examples):
        total.add(rows.packed(number), example)
    about["digest"] = total.hexdigest()
    with suppress(OSError):
        with replacing(path) as (file,):
            file.write(_header(about, len(rows), sum(rows.lengths)))
            for part in range(2):
                for number in range(len(rows)):
                    file.write(rows.packed(number)[part])
            for numbers in (rows.lengths, rows.examples):
                file.write(array("i", numbers).tobytes())
        for old in path.parent.glob("*.safetensors"):
            if old.stat().st_mtime < time.time() - _UNUSED_DAYS * 24 * 3600:
                old.unlink()


def _header(about: Mapping[str, str], rows: int, tokens: int) -> bytes:
    """What stands before the arrays in a file of safetensors, so that they can be written row by row."""
    header: dict[str, Any] = {"__metadata__": about}
    start = 0
    for name, (kind, width) in _ARRAYS.items():
        count = rows if name in ("lengths", "examples") else tokens
        header[name] = {"dtype": kind, "shape": [count], "data_offsets": [start, start + width * count]}
        start += width * count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class _Digest:
    """Of rows, one after the other, and what is said about them."""

    def __init__(self, about: Mapping[str, str]) -> None:
        words = "\0".join(about[name] for name in ("counts", "losses", "audit"))
        self._total = blake2b(words.encode(), digest_size=16)

    def add(self, packed: tuple[bytes, bytes], example: int) -> None:
        """One more row."""
        self._total.update(len(packed[1]).to_bytes(8, "little") + example.to_bytes(8, "little"))
        for part in packed:
            self._total.update(part)

    def hexdigest(self) -> str:
        """Of all of them."""
        return self._total.hexdigest()


@cache
def _code() -> str:
    """A digest of the code that makes tokens: a changed line, and nothing kept before it is used."""
    total = blake2b(digest_size=16)
    ours = Path(__file__).parents[1]
    for path in sorted(path for folder in ("data", "models") for path in (ours / folder).rglob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()
