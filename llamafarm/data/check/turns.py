"""Conversations that break off, or whose turns stand in an order that templates refuse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from llamafarm.api import Example, Message

_FENCE = "```"
_CLOSING = {"{": "}", "[": "]"}
_OPEN_ENDS = (",", ";", "(", "[", "{")


def conversations(example: Example) -> list[Example]:
    """A row as it is learned: two conversations where it holds a better and a worse answer, the better one first."""
    answers = [answer for answer in (example.chosen, example.rejected) if answer]
    whole = [(*example.messages, *answer) for answer in answers]
    return [replace(example, messages=messages, chosen=(), rejected=()) for messages in whole] or [example]


def breaks_off(messages: Sequence[Message]) -> Iterator[str]:
    """What says that a conversation or one of its answers was cut."""
    for number, message in enumerate(messages, 1):
        if message.role == "assistant" and (sign := _cut(message.content)):
            yield f"the answer in turn {number} breaks off: {sign}"
    if messages and messages[-1].role != "assistant":
        yield f"the last turn is by {messages[-1].role}: no answer follows"


def _cut(answer: str) -> str:
    text = answer.strip()
    if text.count(_FENCE) % 2:
        return "a code block is not closed"
    if text.endswith(_OPEN_ENDS):
        return f"it ends with {text[-1]!r}"
    closing = _CLOSING.get(text[0]) if text else None
    if closing and text.count(text[0]) > text.count(closing):
        return f"{text[0]!r} is not closed"
    return ""


def out_of_order(messages: Sequence[Message]) -> Iterator[str]:
    """What many chat templates refuse: a late system turn, a first turn by the assistant, one role twice in a row."""
    for number, message in enumerate(messages, 1):
        if message.role == "system" and number > 1:
            yield f"turn {number} is by system: only the first may be"
    speaking = [(number, message.role) for number, message in enumerate(messages, 1) if message.role != "system"]
    if speaking and speaking[0][1] != "user":
        yield f"the conversation begins with {speaking[0][1]}, not with user"
    for (_, before), (number, role) in pairwise(speaking):
        if role == before != "tool":
            yield f"turn {number} is by {role}, as the one before"
