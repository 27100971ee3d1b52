"""The forms a row may have, and the one internal form they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llamafarm.api import Example, Message, RowRef
from llamafarm.data import fields
from llamafarm.data.chats import read_chat
from llamafarm.data.strict import Fault
from llamafarm.errors import DataError

PROMPTS = ("prompt", "question", "query")
COMPLETIONS = ("completion", "answer", "response", "output")


@dataclass(frozen=True, slots=True)
class _Content:
    messages: tuple[Message, ...] = ()
    text: str | None = None
    prompt: str | None = None


def _messages(row: Mapping[str, Any], _: str) -> _Content:
    return _Content(read_chat(row, "messages"))


def _sharegpt(row: Mapping[str, Any], _: str) -> _Content:
    return _Content((*_system(row), *read_chat(row, "conversations")))


def _alpaca(row: Mapping[str, Any], _: str) -> _Content:
    """With a chat template: a user turn (instruction, blank line, input) and the answer.

    Without one: `### Instruction:`, `### Input:` and `### Response:` sections.
    """
    instruction, answer = fields.text(row, "instruction"), fields.text(row, "output")
    given, system = fields.optional_text(row, "input"), _system(row)
    turns = [*system, *_history(row)]
    user = f"{instruction}\n\n{given}" if given else instruction
    plain = None
    if not turns:
        section = f"### Input:\n{given}\n\n" if given else ""
        plain = f"### Instruction:\n{instruction}\n\n{section}### Response:\n"
    return _Content((*turns, Message("user", user), Message("assistant", answer)), prompt=plain)


def _history(row: Mapping[str, Any]) -> list[Message]:
    """Earlier turns, as pairs of a prompt and its answer."""
    history = row.get("history")
    if history is None or history == []:
        return []
    turns: list[Message] = []
    for number, pair in enumerate(fields.items(row, "history"), 1):
        if not (isinstance(pair, list) and len(pair) == 2):
            raise Fault("LF-DATA-014", f"item {number} of 'history' is not a pair of prompt and answer")
        sides = {"prompt": pair[0], "answer": pair[1]}
        place = f"item {number} of 'history'"
        turns.append(Message("user", fields.text(sides, "prompt", of=place)))
        turns.append(Message("assistant", fields.text(sides, "answer", of=place)))
    return turns


def _system(row: Mapping[str, Any]) -> list[Message]:
    system = fields.optional_text(row, "system")
    return [Message("system", system)] if system else []


def _prompt_completion(row: Mapping[str, Any], _: str) -> _Content:
    """With a chat template: a user turn and the answer. Without one: the two texts, one after the other."""
    prompt = fields.text(row, _first(row, PROMPTS))
    completion = fields.text(row, _first(row, COMPLETIONS))
    system = _system(row)
    plain = "\n\n".join([*(message.content for message in system), prompt])
    return _Content((*system, Message("user", prompt), Message("assistant", completion)), prompt=plain)


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((name for name in names if name in row), names[0])


def _text(row: Mapping[str, Any], text_field: str) -> _Content:
    return _Content(text=fields.text(row, text_field))


_READERS: Mapping[str, Callable[[Mapping[str, Any], str], _Content]] = MappingProxyType(
    {
        "messages": _messages,
        "sharegpt": _sharegpt,
        "alpaca": _alpaca,
        "prompt-completion": _prompt_completion,
        "text": _text,
    }
)
FORMATS = tuple(_READERS)


def unused_columns(row: Mapping[str, Any], format: str, text_field: str = "text") -> list[str]:  # noqa: A002
    """The columns that hold something and that the form does not read."""
    used = {
        "messages": ("messages",),
        "sharegpt": ("conversations", "system"),
        "alpaca": ("instruction", "input", "output", "system", "history"),
        "prompt-completion": (_first(row, PROMPTS), _first(row, COMPLETIONS), "system"),
        "text": (text_field,),
    }[format]
    return [name for name, value in row.items() if name not in used and value is not None]


def detect_format(row: Mapping[str, Any], text_field: str = "text") -> tuple[str, str]:
    """Tell the form of a row from its columns.

    Returns:
        One of `FORMATS`, and the reason in words.

    Raises:
        DataError: If the columns are those of no form.
    """
    if found := _recognize(row, text_field):
        return found
    raise DataError([_unrecognized(row).at("")])


def _recognize(row: Mapping[str, Any], text_field: str) -> tuple[str, str] | None:
    if "messages" in row:
        return "messages", "column 'messages'"
    if "conversations" in row:
        return "sharegpt", "column 'conversations'"
    if "instruction" in row:
        return "alpaca", "column 'instruction'"
    prompt, completion = _first(row, PROMPTS), _first(row, COMPLETIONS)
    if prompt in row and completion in row:
        return "prompt-completion", f"columns {prompt!r} and {completion!r}"
    if text_field in row:
        return "text", f"column {text_field!r}"
    return None


def _unrecognized(row: Mapping[str, Any]) -> Fault:
    columns = ", ".join(map(repr, row)) or "none"
    for name, value in row.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            return Fault("LF-DATA-018", f"an object around the rows: they stand under {name!r}", hint="save that list")
    hint = "expected 'messages', 'conversations', 'instruction' and 'output', 'prompt' and 'completion', or 'text'"
    return Fault("LF-DATA-010", f"no known form; columns: {columns}", hint=hint)


def to_example(row: Mapping[str, Any], ref: RowRef, format: str, text_field: str = "text") -> Example:  # noqa: A002
    """Read a row of the given form.

    Raises:
        DataError: With the place of the row, and what is wrong with it.
    """
    try:
        content = _READERS[format](row, text_field)
    except Fault as fault:
        raise DataError([_explained(fault, row, format, text_field).at(str(ref))]) from None
    return Example(ref, content.messages, content.text, content.prompt)


def _explained(fault: Fault, row: Mapping[str, Any], expected: str, text_field: str) -> Fault:
    """A row of another form has no missing fields: it has another form."""
    found = _recognize(row, text_field)
    if found is None or found[0] == expected:
        return fault
    return Fault("LF-DATA-011", f"the row is {found[0]} ({found[1]}), where {expected} was expected")
