"""JSON read strictly: what other readers would alter or lose in silence is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isinf
from typing import Any

from llamafarm.data.quick import quick_rows
from llamafarm.errors import Problem


class Fault(Exception):  # noqa: N818  # carried to the place that knows file and line, never shown as it is
    """What is wrong with one row, without its place.

    Attributes:
        column: 1-based character in the line, 0 when it is not known.
    """

    def __init__(self, id_: str, message: str, *, column: int = 0, hint: str = "") -> None:
        super().__init__(message)
        self.id, self.message, self.column, self.hint = id_, message, column, hint

    def at(self, where: str) -> Problem:
        """The problem, placed."""
        return Problem(self.id, self.message, f"{where}:{self.column}" if self.column else where, self.hint)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Fault("LF-DATA-007", f"key {twice!r} stands twice in one object", hint="keep one of them")
    return fields


def _constant(name: str) -> Any:
    raise Fault("LF-DATA-008", f"{name} is not JSON", hint="write null or a finite number")


def _finite(text: str) -> float:
    number = float(text)
    if isinf(number):
        message = f"{text[:20]} is a number that no computer holds: it would become infinite"
        raise Fault("LF-DATA-100", message, hint="write it as text, or leave it out")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite)


def decode(text: str, start: int = 0) -> tuple[Any, int]:
    """Read one JSON value at `text[start]`.

    Returns:
        The value, and the index after it.

    Raises:
        Fault: With the id and the reason; its column is the index + 1.
    """
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise Fault("LF-DATA-004", f"invalid JSON: {error.msg}", column=error.pos + 1) from None
    except RecursionError:
        raise Fault("LF-DATA-004", "invalid JSON: nested too deeply") from None
    except ValueError as error:  # the interpreter's limit on the digits of a number
        raise Fault("LF-DATA-004", f"invalid JSON: {error}") from None


def decode_row(raw: bytes) -> dict[str, Any]:
    """Read one line that must hold one JSON object.

    Raises:
        Fault: If it does not.
    """
    if found := quick_rows(raw, [raw]):
        return found[0][0]
    return _judge(raw)


def _judge(raw: bytes) -> dict[str, Any]:
    """Read one line by the strict rules alone."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        column = len(raw[: error.start].decode()) + 1
        byte = f"0x{raw[error.start]:02x}"
        raise Fault("LF-DATA-005", f"not UTF-8: byte {byte}", column=column, hint="save the file as UTF-8") from None
    start = len(text) - len(text.lstrip(" \t"))
    value, end = decode(text, start)
    if text[end:].strip():  # which is not shown: rows may be private
        raise Fault("LF-DATA-004", "invalid JSON: something stands after the object", column=end + 1)
    return as_row(value, raw)


def as_row(value: Any, raw: bytes) -> dict[str, Any]:
    """Check that a JSON value is an object of real text.

    Raises:
        Fault: If it is something else, or holds half a surrogate pair.
    """
    if not isinstance(value, dict):
        found = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
        raise Fault("LF-DATA-006", f"expected a JSON object, found {found}", hint="write one object a line")
    if b"\\ud" in raw.lower():
        _refuse_lone_surrogates(value)
    return value


def _refuse_lone_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(error.object[error.start]):04x}"
        message = f"{code} is half of a surrogate pair: no character"
        raise Fault("LF-DATA-009", message, hint="write the character itself, or both halves") from None
