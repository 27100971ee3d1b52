"""Held-out conversations as questions with the answers that they should get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamafarm.api import Example
from llamafarm.data.plain import plain_prompt

Chat = Sequence[dict[str, str]]
"""Messages as `{"role": …, "content": …}`."""


@dataclass(frozen=True, slots=True)
class Questions:
    """Conversations without their last answer, in the form that training gave them, and that answer.

    Attributes:
        prompts: Raw text, or chats where the tokenizer has a template.
        expected: The answer to each.
        refs: `file:line` of each.
        left_out: Why examples are not among them → how many.
    """

    prompts: list[str | Chat]
    expected: list[str]
    refs: list[str] = field(default_factory=list)
    left_out: Mapping[str, int] = field(default_factory=dict)


def questions(examples: Sequence[Example], limit: int, tokenizer: Any) -> Questions:
    """Take up to `limit` conversations that end with the assistant's words, of those without tools."""
    chosen: list[Example] = []
    left_out: dict[str, int] = {}
    for example in examples:
        reason = _unsuitable(example) or ("beyond the limit" if len(chosen) == limit else "")
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
        else:
            chosen.append(example)
    return Questions(
        [_prompt(example, tokenizer) for example in chosen],
        [example.messages[-1].content for example in chosen],
        [str(example.ref) for example in chosen],
        left_out,
    )


def _unsuitable(example: Example) -> str:
    turns = example.messages
    if not turns or turns[-1].role != "assistant":
        return "no answer at the end"
    return "with tools" if example.tools or any(turn.tool_calls for turn in turns) else ""


def _prompt(example: Example, tokenizer: Any) -> str | Chat:
    if tokenizer.chat_template:
        return [{"role": message.role, "content": message.content} for message in example.messages[:-1]]
    return plain_prompt(example.messages[:-1], example.prompt, end=tokenizer.eos_token)
