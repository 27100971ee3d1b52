"""A conversation as chat templates take it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llamafarm.api import Example, Message


@dataclass(frozen=True, slots=True)
class Answer:
    """An assistant turn: its place in the conversation, and whether it is learned."""

    index: int
    content: str
    learned: bool
    last: bool
    calls: bool


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation as templates expect it, or its beginning."""

    turns: tuple[dict[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    def until(self, index: int) -> Chat:
        return Chat(self.turns[:index], self.tools)

    def changed(self, index: int, turn: dict[str, Any]) -> Chat:
        return Chat((*self.turns[:index], turn, *self.turns[index + 1 :]), self.tools)


def chat_of(example: Example) -> Chat:
    return Chat(tuple(message.as_dict() for message in example.messages), example.tools)


def open_parts(message: Message) -> dict[str, Any]:
    """The parts of a turn that a row writes freely."""
    return {
        "content": message.content,
        "tool_calls": message.tool_calls,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
    }


def texts_of(example: Example) -> Iterator[str]:
    """All texts that a template may write, calls and tools as one text each."""
    for message in example.messages:
        yield message.content
        for other in (message.name, message.tool_call_id):
            if other:
                yield other
        yield from map(str, message.tool_calls)
    yield from map(str, example.tools)


def answers_of(messages: tuple[Message, ...]) -> Iterator[Answer]:
    for index, message in enumerate(messages):
        if message.role == "assistant":
            learned, last = message.train is not False, index == len(messages) - 1
            yield Answer(index, message.content, learned, last, bool(message.tool_calls))
