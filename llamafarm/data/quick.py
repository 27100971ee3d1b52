"""Reads rows by a fast library where its answer is surely that of the strict reader, and writes their canonical form.

The library takes the last of two equal keys, and makes an inexact number of an integer beyond 64 bits. Both leave a
mark when the parsed rows are written again: a lost key takes its quotes along, and a lost integer its digits. Whatever
it refuses, and whatever leaves such a mark, is for `llamafarm.data.strict` to judge.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from hashlib import blake2b
from itertools import repeat
from typing import Any

import orjson

DIGEST_BYTES = 16

_HIDDEN_QUOTE = rb"\u0022"
_LONG_NUMBER = re.compile(rb"[0-9]{19,}")
_LONG = 1 << 14  # from here on numpy counts faster
_STRIDE = 6  # of 19 digits in a row, at least three stand this far apart
_DIGITS_ALIKE = bytes(48 if 48 <= byte <= 57 else 32 for byte in range(256))
_SORTED = orjson.OPT_SORT_KEYS
_SPELT = _SORTED | orjson.OPT_PASSTHROUGH_DATETIME  # a date as Python writes it, like every other kind of value
_ALL_OTHERS = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and without spaces: equal values, equal bytes.

    Raises:
        UnicodeEncodeError: If a text holds half a surrogate pair.
    """
    try:
        return orjson.dumps(value, str, _SPELT)
    except TypeError:  # an integer beyond 64 bits, a key that is no text, too deep a nesting
        return _ALL_OTHERS.encode(value).encode()


def form_digest(form: bytes) -> bytes:
    """16 bytes of BLAKE2b over a canonical form; splits hang on it, so that another one would move rows."""
    return blake2b(form, digest_size=DIGEST_BYTES).digest()


def quick_rows(block: bytes, lines: Sequence[bytes]) -> tuple[list[dict[str, Any]], list[bytes]] | None:
    """Read lines that hold one object each.

    Args:
        block: All lines, with their ends.
        lines: The same, one by one.

    Returns:
        The objects and their canonical forms; None if the strict reader must judge the lines.
    """
    if _HIDDEN_QUOTE in block:
        return None
    try:
        rows = list(map(orjson.loads, lines))
        forms = list(map(orjson.dumps, rows, repeat(None), repeat(_SORTED)))
    except (orjson.JSONDecodeError, TypeError):  # TypeError: nested so deeply that it cannot be written
        return None
    if not {*map(type, rows)} <= {dict}:
        return None
    written = b"".join(forms)
    if _quotes(block) != _quotes(written) or ((found := _numbers(block)) and found != _numbers(written)):
        return None
    return rows, forms


def _quotes(text: bytes) -> int:
    if len(text) < _LONG:
        return text.count(b'"')
    import numpy as np

    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord('"')))


def _numbers(text: bytes) -> list[bytes]:
    """Runs of digits that may be integers beyond 64 bits, in any order.

    An inexact number is written with so many digits only behind `0.0`, and no integer begins with 0: none takes the
    place of one that was lost. The first look is for speed alone.
    """
    if b"000" not in text[::_STRIDE].translate(_DIGITS_ALIKE):
        return []
    return sorted(_LONG_NUMBER.findall(text))
