"""The forms a row may have, and the one internal form they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llamafarm.api import Example, Message, RowRef
from llamafarm.data import fields
from llamafarm.data.chats import read_chat, read_turns
from llamafarm.data.strict import Fault
from llamafarm.data.tools import Tools, check_calls, read_tools
from llamafarm.errors import DataError

PROMPTS = ("prompt", "question", "query")
COMPLETIONS = ("completion", "answer", "response", "output")
_LABELS: Mapping[str, bool] = MappingProxyType({"true": True, "false": False})


@dataclass(frozen=True, slots=True)
class _Content:
    messages: tuple[Message, ...] = ()
    text: str | None = None
    prompt: str | None = None
    tools: Tools = ()
    chosen: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    label: bool | None = None


def _messages(row: Mapping[str, Any], _: str) -> _Content:
    return _with_tools(row, read_chat(row, "messages"))


def _sharegpt(row: Mapping[str, Any], _: str) -> _Content:
    return _with_tools(row, (*_system(row), *read_chat(row, "conversations")))


def _with_tools(row: Mapping[str, Any], messages: tuple[Message, ...]) -> _Content:
    tools = read_tools(row)
    check_calls(messages, tools)
    return _Content(messages, tools=tools)


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
    asked, answered = _first(row, PROMPTS), _first(row, COMPLETIONS)
    system = _system(row)
    if any(isinstance(row.get(name), list) for name in (asked, answered)):
        turns = (*system, *read_turns(row, asked, "user"), *read_turns(row, answered, "assistant"))
        return _with_tools(row, turns)
    prompt, completion = fields.text(row, asked), fields.text(row, answered)
    plain = "\n\n".join([*(message.content for message in system), prompt])
    return _Content((*system, Message("user", prompt), Message("assistant", completion)), prompt=plain)


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((name for name in names if name in row), names[0])


def _preference(row: Mapping[str, Any], _: str) -> _Content:
    """A prompt with a better and a worse answer; without a prompt, both begin with it."""
    chosen, rejected = (read_turns(row, name, "assistant") for name in ("chosen", "rejected"))
    asked = _first(row, PROMPTS)
    prompt = read_turns(row, asked, "user") if asked in row else ()
    if not prompt:
        shared = next((at for at, pair in enumerate(zip(chosen, rejected, strict=False)) if pair[0] != pair[1]), 0)
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not prompt:
        hint = f"give a column 'prompt', or the same turns before both answers; there: {', '.join(map(repr, row))}"
        raise Fault("LF-DATA-012", "the prompt is missing", hint=hint)
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not any(message.role == "assistant" for message in answer):
            raise Fault("LF-DATA-016", f"no assistant turn in {name!r}")
    if chosen == rejected:
        raise Fault("LF-DATA-048", "'chosen' and 'rejected' are the same: nothing can be preferred")
    return _Content((*_system(row), *prompt), tools=read_tools(row), chosen=chosen, rejected=rejected)


def _unpaired(row: Mapping[str, Any], _: str) -> _Content:
    """A prompt, an answer, and whether that is a good one."""
    prompt = read_turns(row, _first(row, PROMPTS), "user")
    completion = read_turns(row, _first(row, COMPLETIONS), "assistant")
    if "label" not in row:
        raise Fault("LF-DATA-012", "'label' is missing", hint="write true for a good answer, false for a bad one")
    label = row["label"]
    label = _LABELS.get(label.strip().lower()) if isinstance(label, str) else label
    if not isinstance(label, bool):
        raise Fault("LF-DATA-014", f"'label' is {row['label']!r}, expected true or false")
    return _Content((*_system(row), *prompt), tools=read_tools(row), chosen=completion, label=label)


def _text(row: Mapping[str, Any], text_field: str) -> _Content:
    return _Content(text=fields.text(row, text_field))


_READERS: Mapping[str, Callable[[Mapping[str, Any], str], _Content]] = MappingProxyType(
    {
        "messages": _messages,
        "sharegpt": _sharegpt,
        "alpaca": _alpaca,
        "prompt-completion": _prompt_completion,
        "text": _text,
        "preference": _preference,
        "unpaired": _unpaired,
    }
)
FORMATS = tuple(_READERS)


def unused_columns(row: Mapping[str, Any], format: str, text_field: str = "text") -> list[str]:  # noqa: A002
    """The columns that hold something and that the form does not read."""
    used = {
        "messages": ("messages", "tools"),
        "sharegpt": ("conversations", "system", "tools"),
        "alpaca": ("instruction", "input", "output", "system", "history"),
        "prompt-completion": (_first(row, PROMPTS), _first(row, COMPLETIONS), "system", "tools"),
        "text": (text_field,),
        "preference": (_first(row, PROMPTS), "chosen", "rejected", "system", "tools"),
        "unpaired": (_first(row, PROMPTS), _first(row, COMPLETIONS), "label", "system", "tools"),
    }[format]
    return [name for name, value in row.items() if name not in used and value not in (None, "")]


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
    if "chosen" in row and "rejected" in row:
        return "preference", "columns 'chosen' and 'rejected'"
    for column, form in (("messages", "messages"), ("conversations", "sharegpt"), ("instruction", "alpaca")):
        if column in row:
            return form, f"column {column!r}"
    prompt, completion = _first(row, PROMPTS), _first(row, COMPLETIONS)
    if prompt in row and completion in row:
        if _is_label(row.get("label")):
            return "unpaired", f"columns {prompt!r}, {completion!r} and 'label', which is true or false"
        return "prompt-completion", f"columns {prompt!r} and {completion!r}"
    return ("text", f"column {text_field!r}") if text_field in row else None


def _is_label(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in _LABELS)


def _unrecognized(row: Mapping[str, Any]) -> Fault:
    columns = ", ".join(map(repr, row)) or "none"
    for name, value in row.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            return Fault("LF-DATA-018", f"an object around the rows: they stand under {name!r}", hint="save that list")
    pairs = "'instruction' and 'output', 'prompt' and 'completion', 'chosen' and 'rejected'"
    hint = f"expected 'messages', 'conversations', {pairs}, or 'text'; dataset.columns gives columns these names"
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
    return Example(
        ref,
        content.messages,
        content.text,
        content.prompt,
        tools=content.tools,
        chosen=content.chosen,
        rejected=content.rejected,
        label=content.label,
    )


def _explained(fault: Fault, row: Mapping[str, Any], expected: str, text_field: str) -> Fault:
    """A row of another form has no missing fields: it has another form."""
    found = _recognize(row, text_field)
    if found is None or {expected, found[0]} in ({expected}, {"unpaired", "prompt-completion"}):
        return fault
    return Fault("LF-DATA-011", f"the row is {found[0]} ({found[1]}), where {expected} was expected")
