"""Reads the tools that an assistant may call, and its calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llamafarm.api import Message
from llamafarm.data import fields
from llamafarm.data.strict import Fault
from llamafarm.errors import nearest

Tools = tuple[Mapping[str, Any], ...]


def read_tools(row: Mapping[str, Any]) -> Tools:
    """The JSON schemas under `tools`; none if the column is absent or empty.

    Raises:
        Fault: If they are no list of objects with names.
    """
    if row.get("tools") in (None, "", [], "[]"):
        return ()
    tools = tuple(fields.items(row, "tools"))
    for number, tool in enumerate(tools, 1):
        _function(tool, f"tool {number}")
    return tools


def read_calls(turn: Mapping[str, Any], place: str) -> Tools:
    """The calls of a turn in one form; arguments that stand there as JSON text become objects.

    Raises:
        Fault: If they are no calls.
    """
    if turn.get("tool_calls") in (None, "", [], "[]"):
        return ()
    calls = enumerate(fields.items(turn, "tool_calls"), 1)
    return tuple(_call(call, f"tool call {number} of {place}") for number, call in calls)


def check_calls(messages: Iterable[Message], tools: Tools) -> None:
    """Refuse calls of tools that are not among those given; without any given, calls are free.

    Raises:
        Fault: If there is such a call.
    """
    names = [_function(tool, "")["name"] for tool in tools]
    for number, message in enumerate(messages, 1):
        for call in message.tool_calls:
            name = call["function"]["name"]
            if names and name not in names:
                message_ = f"turn {number} calls {name!r}, which is not among the tools"
                raise Fault("LF-DATA-047", message_, hint=nearest(name, names) or f"there: {', '.join(names)}")


def _call(call: Any, place: str) -> dict[str, Any]:
    function = _function(call, place)
    arguments = fields.parsed(function.get("arguments", {}), f"arguments of {place}")
    if not isinstance(arguments, dict):
        raise Fault("LF-DATA-014", f"'arguments' of {place} are {fields.kind(arguments)}, expected an object")
    known = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return known | ({"id": call["id"]} if call.get("id") is not None else {})


def _function(value: Any, place: str) -> Mapping[str, Any]:
    """What stands under `function`, or the object itself where that is left out."""
    function = value.get("function", value) if isinstance(value, dict) else value
    if not isinstance(function, dict):
        raise Fault("LF-DATA-014", f"{place} is {fields.kind(function)}, expected an object")
    fields.text(function, "name", of=place)
    return function
