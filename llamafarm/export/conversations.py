"""Fifty conversations that show what a template does: one and several turns, a system text, tools, odd characters."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

COUNT: Final = 50

_TEXTS: Final = (
    "What is the weather in Paris?",
    "  leading and trailing blanks  ",
    "two\nlines\n\nand a gap",
    "Grüße, 你好, مرحبا, 👋🏽",
    "a <b> & \"c\" {{ d }} {% e %} 'f'",
    "1234567890 3.14 1e-5",
    "def f(x):\n    return x  # tab\there",
    "don't we'll I'VE",
)
_SYSTEMS: Final = ("You are a helpful assistant.", "Antworte kurz.\nAuf Deutsch.")
_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name."}},
            "required": ["city"],
        },
    },
}
_CALL: Final = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages up to where the model answers.

    Attributes:
        kind: What is special about it: `single`, `system`, `turns`, `tools` or `tool answer`.
        messages: As an OpenAI-style endpoint takes them.
        tools: JSON schemas.
    """

    kind: str
    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()


def conversations() -> list[Conversation]:
    """The fifty, always the same: ten of each kind."""
    texts = itertools.cycle(_TEXTS)
    systems = itertools.cycle(_SYSTEMS)
    found = []
    for index in range(COUNT // 5):
        asked = [_said("user", next(texts))]
        system = [_said("system", next(systems))]
        turns = [_said(role, next(texts)) for _ in range(1 + index % 3) for role in ("user", "assistant")] + [
            _said("user", next(texts))
        ]
        answered = [
            *asked,
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "name": "get_weather", "content": '{"celsius": 21}'},
        ]
        found += [
            Conversation("single", asked),
            Conversation("system", [*system, *asked]),
            Conversation("turns", [*(system if index % 2 else []), *turns]),
            Conversation("tools", asked, (_TOOL,)),
            Conversation("tool answer", answered, (_TOOL,)),
        ]
    return found


def _said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}
