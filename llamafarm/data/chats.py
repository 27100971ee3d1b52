"""Reads the turns of a chat, in the names of either convention: `role`/`content` or `from`/`value`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from llamafarm.api import Message
from llamafarm.data.fields import items, kind, optional_text, text
from llamafarm.data.strict import Fault
from llamafarm.data.tools import read_calls
from llamafarm.errors import nearest, one_of

Role = Literal["system", "user", "assistant", "tool"]

ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "system": "system",
        "developer": "system",
        "user": "user",
        "human": "user",
        "assistant": "assistant",
        "gpt": "assistant",
        "model": "assistant",
        "tool": "tool",
    }
)
_KNOWN = {"role", "content", "from", "value", "train", "weight"}
_OF_ROLE: Mapping[str, frozenset[str]] = MappingProxyType(
    {"assistant": frozenset({"tool_calls"}), "tool": frozenset({"name", "tool_call_id"})}
)


def read_chat(row: Mapping[str, Any], column: str) -> tuple[Message, ...]:
    """The turns under `column`, where somebody answers.

    Raises:
        Fault: If they are no chat, or nobody answers in it.
    """
    messages = read_turns(row, column)
    if not any(message.role == "assistant" and message.train is not False for message in messages):
        raise Fault("LF-DATA-016", "no assistant turn to learn from", hint="add the answer, or leave the row out")
    return messages


def read_turns(row: Mapping[str, Any], column: str, role: Role | None = None) -> tuple[Message, ...]:
    """The turns under `column`; where a `role` is given, plain text is one turn by it.

    Raises:
        Fault: If they are no turns.
    """
    value = row.get(column)
    if role is not None and isinstance(value, str):
        return (Message(role, text(row, column)),)
    return tuple(_message(item, f"turn {number} of {column!r}") for number, item in enumerate(items(row, column), 1))


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, dict):
        raise Fault("LF-DATA-014", f"{place} is {kind(item)}, expected an object")
    role = text(item, "from" if "from" in item else "role", of=place)
    if role not in ROLES:
        raise Fault("LF-DATA-015", f"{place} is by {role!r}, expected {one_of(ROLES)}", hint=nearest(role, ROLES))
    known = _KNOWN | _OF_ROLE.get(ROLES[role], frozenset())
    if extra := sorted(key for key in item if key not in known and item[key] not in (None, [], {})):
        raise Fault("LF-DATA-017", f"{place} by {role!r} has {', '.join(map(repr, extra))}, which cannot be trained on")
    calls = read_calls(item, place)
    key = "value" if "from" in item else "content"
    content = "" if calls and not item.get(key) else text(item, key, of=place)
    train = _train(item, place)
    if train and ROLES[role] != "assistant":
        raise Fault("LF-DATA-017", f"{place} is to be trained on, but it is by {role!r}: only answers are learned")
    name, answered = (optional_text(item, key) or None for key in ("name", "tool_call_id"))
    return Message(ROLES[role], content, train, calls, name, answered)


def _train(item: Mapping[str, Any], place: str) -> bool | None:
    """`train: false`, or `weight: 0` as another convention spells it."""
    value = item.get("train", item.get("weight"))
    if value is None or isinstance(value, bool):
        return value
    if "train" not in item and value in (0, 1):
        return bool(value)
    raise Fault("LF-DATA-014", f"'train' of {place} is {value!r}, expected true or false")
