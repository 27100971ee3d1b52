"""Conversations as plain text, for tokenizers without a chat template.

A prompt that came as one text stays as it is. Others become sections: the system's text, then `### Instruction:` and
`### Response:`. Each answer is followed by the tokenizer's end-of-text token.
"""

from __future__ import annotations

from collections.abc import Sequence

from llamafarm.api import Example, Message
from llamafarm.data.spans import Rendered, Span

ANSWER = "### Response:\n"
_HEADINGS = {"system": "", "user": "### Instruction:\n", "tool": "### Input:\n", "assistant": ANSWER}


def plain_prompt(messages: Sequence[Message], prompt: str | None = None) -> str:
    """What stands before the next answer: the text to generate from.

    Args:
        messages: The turns so far.
        prompt: `Example.prompt`: the text of a row that came with one.
    """
    return prompt if prompt is not None else "".join(map(_section, messages)) + ANSWER


def render_plain(example: Example) -> Rendered:
    """Render raw text, or a conversation without a chat template."""
    if example.text is not None:
        return Rendered(example.text, (Span(0, len(example.text), close=True),), example.ref, begin=True, raw=True)
    text, spans = "", []
    for index, message in enumerate(example.messages):
        if message.role != "assistant":
            text += _section(message)
            continue
        if index == len(example.messages) - 1 and example.prompt is not None:
            text = example.prompt
        else:
            text += ANSWER
        if message.train is not False:
            spans.append(Span(len(text), len(text) + len(message.content), close=True))
        text += message.content
        if index < len(example.messages) - 1:
            text += "\n\n"
    return Rendered(text, tuple(spans), example.ref, begin=True)


def _section(message: Message) -> str:
    return f"{_HEADINGS[message.role]}{message.content}\n\n"
