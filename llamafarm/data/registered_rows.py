"""Rows of a registered dataset, in the names and forms that all other rows have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llamafarm.api import RowRef
from llamafarm.data import fields
from llamafarm.data.problems import ProblemLog
from llamafarm.data.registry import Entry
from llamafarm.data.sources import Rows
from llamafarm.data.strict import Fault

_ROLES = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "assistant",
    "system_tag": "system",
}


def translated(entry: Entry, rows: Rows, log: ProblemLog) -> Iterator[tuple[RowRef, dict[str, Any]]]:
    """The rows as rows of the forms `alpaca`, `messages`, `text`, `preference` or `unpaired`; problems go to `log`."""
    translate = _alpaca if entry.form == "alpaca" else _sharegpt
    for ref, row in rows:
        try:
            yield ref, translate(entry, row) | _others(entry, row)
        except Fault as fault:
            log.add(fault.at(str(ref)))


def _alpaca(entry: Entry, row: Mapping[str, Any]) -> dict[str, Any]:
    asked, answered = entry.columns.get("prompt"), entry.columns.get("response")
    judged = entry.ranking or "kto_tag" in entry.columns
    if asked and not answered and not judged:
        return {"text": row.get(asked)}
    names = {"instruction": asked, "input": entry.columns.get("query"), "history": entry.columns.get("history")}
    named = _named(row, names | {"system": entry.columns.get("system"), "tools": entry.columns.get("tools")})
    if not judged:
        return named | _named(row, {"output": answered})
    given = fields.optional_text(named, "input")
    prompt = fields.text(named, "instruction") + (f"\n\n{given}" if given else "")
    kept = {key: named[key] for key in ("system", "tools") if key in named}
    if named.get("history"):
        raise Fault("LF-DATA-202", "history cannot be combined with ranking or kto_tag")
    return kept | {"prompt": prompt} | _judged(entry, row, {"completion": row.get(answered)} if answered else {})


def _sharegpt(entry: Entry, row: Mapping[str, Any]) -> dict[str, Any]:
    messages = entry.columns.get("messages", "conversations")
    turns = [_turn(entry, item) for item in fields.items(row, messages)]
    named = _named(row, {"tools": entry.columns.get("tools")})
    if system := fields.optional_text(row, entry.columns["system"]) if "system" in entry.columns else "":
        turns = [{"role": "system", "content": system}, *turns]
    if entry.ranking:
        return named | {"prompt": turns} | _judged(entry, row, {})
    if "kto_tag" in entry.columns:
        return named | {"prompt": turns[:-1]} | _judged(entry, row, {"completion": turns[-1:]})
    return named | {"messages": turns}


def _judged(entry: Entry, row: Mapping[str, Any], completion: Mapping[str, Any]) -> dict[str, Any]:
    """The answers that are compared, or the one that is good or bad."""
    if not entry.ranking:
        return dict(completion) | _named(row, {"label": entry.columns.get("kto_tag")})
    answers = _named(row, {key: entry.columns.get(key) for key in ("chosen", "rejected")})
    return {key: [_turn(entry, value)] if isinstance(value, dict) else value for key, value in answers.items()}


def _turn(entry: Entry, item: Any) -> Any:
    """A turn by the names of the chat forms; what is no turn is left for them to refuse."""
    tags = entry.tags
    if not isinstance(item, dict) or tags["role_tag"] not in item:
        return item
    role, content = item[tags["role_tag"]], item.get(tags["content_tag"])
    known = next((tag for tag in _ROLES if tags[tag] == role), None)
    rest = {key: value for key, value in item.items() if key not in (tags["role_tag"], tags["content_tag"])}
    if known == "function_tag":
        calls = fields.parsed(content, "the call")
        return rest | {"role": "assistant", "content": "", "tool_calls": calls if isinstance(calls, list) else [calls]}
    return rest | {"role": _ROLES[known] if known else role, "content": content}


def _named(row: Mapping[str, Any], names: Mapping[str, str | None]) -> dict[str, Any]:
    """Our name → the value, of the columns that the row has."""
    return {ours: row[theirs] for ours, theirs in names.items() if theirs is not None and theirs in row}


def _others(entry: Entry, row: Mapping[str, Any]) -> dict[str, Any]:
    """Columns that the entry does not name: a curriculum or a splitter may go by them."""
    taken = {*entry.columns.values(), "instruction", "input", "output", "history", "messages", "conversations", "text"}
    taken |= {"prompt", "completion", "chosen", "rejected", "label", "system", "tools"}
    return {name: value for name, value in row.items() if name not in taken}
