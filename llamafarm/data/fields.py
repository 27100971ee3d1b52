"""Typed access to the fields of a row; a field that is missing, empty or of another type is a fault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamafarm.data.strict import Fault, decode


def text(fields: Mapping[str, Any], name: str, *, of: str = "") -> str:
    """The text of a required field.

    Args:
        fields: The row, or a part of it.
        name: The field.
        of: What `fields` is when it is not the row itself, for the message: `message 2`.

    Raises:
        Fault: If it is missing, not text, or blank.
    """
    place = f" of {of}" if of else ""
    if name not in fields:
        raise Fault("LF-DATA-012", f"{name!r}{place} is missing", hint=_names(fields))
    value = fields[name]
    if not isinstance(value, str):
        raise Fault("LF-DATA-014", f"{name!r}{place} is {kind(value)}, expected text")
    if not value.strip():
        raise Fault("LF-DATA-013", f"{name!r}{place} is empty")
    return value


def optional_text(fields: Mapping[str, Any], name: str) -> str:
    """The text of a field that may be absent, null or blank; then it is an empty string.

    Raises:
        Fault: If it is something else than text.
    """
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Fault("LF-DATA-014", f"{name!r} is {kind(value)}, expected text")
    return value if value.strip() else ""


def items(fields: Mapping[str, Any], name: str) -> list[Any]:
    """The elements of a required list, which may stand there as JSON text: tables have no other way.

    Raises:
        Fault: If it is missing, not a list, or empty.
    """
    if name not in fields:
        raise Fault("LF-DATA-012", f"{name!r} is missing", hint=_names(fields))
    value = parsed(fields[name], name)
    if not isinstance(value, list):
        raise Fault("LF-DATA-014", f"{name!r} is {kind(value)}, expected a list")
    if not value:
        raise Fault("LF-DATA-013", f"{name!r} is empty")
    return value


def parsed(value: Any, name: str) -> Any:
    """A value that stands there as the JSON text of a list or an object, parsed; every other value as it is.

    Raises:
        Fault: If the text begins as JSON and is none.
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        whole, end = decode(value.strip())
    except Fault as fault:
        raise Fault(fault.id, f"{name!r}: {fault.message} (character {fault.column})", hint=fault.hint) from None
    if rest := value.strip()[end:]:
        raise Fault("LF-DATA-004", f"{name!r}: invalid JSON: {rest[:20]!r} after its end")
    return whole


def _names(fields: Mapping[str, Any]) -> str:
    return f"there: {', '.join(map(repr, fields))}" if fields else ""


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {type(None): "null", bool: "a boolean", str: "text", list: "a list", dict: "an object"}
    numbers = {int: "a number", float: "a number"}
    return (names | numbers).get(type(value), f"a value of the kind {type(value).__name__}")
