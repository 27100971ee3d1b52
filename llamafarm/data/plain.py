"""Conversations as plain text, for tokenizers without a chat template.

A prompt that came as one text stays as it is. Others become sections: the system's text, then `### Instruction:` and
`### Response:`. Each answer is followed by the tokenizer's end-of-text token.
"""

from __future__ import annotations

from collections.abc import Sequence

from llamafarm.api import Example, Message
from llamafarm.data.spans import Rendered, Span
from llamafarm.models.literal import Literals

ANSWER = "### Response:\n"
_HEADINGS = {"system": "", "user": "### Instruction:\n", "tool": "### Input:\n", "assistant": ANSWER}


def plain_prompt(messages: Sequence[Message], prompt: str | None = None, *, end: str) -> str:
    """What stands before the next answer: the text to generate from.

    Args:
        messages: The turns so far.
        prompt: `Example.prompt`: the text of a row that came with one.
        end: The tokenizer's end-of-text token, which stands after earlier answers.
    """
    if prompt is not None:
        return prompt
    return "".join(f"{_heading(message)}{message.content}{_after(message, end)}" for message in messages) + ANSWER


def render_plain(example: Example, *, end: str, literals: Literals | None = None) -> Rendered:
    """Render raw text, or a conversation without a chat template.

    Args:
        example: What to render.
        end: The tokenizer's end-of-text token.
        literals: Tells which special tokens are the row's; None: all of them are meant as what they are.
    """
    if example.text is not None:
        literal = literals.between(example.text, frozenset()) if literals else ()
        span = Span(0, len(example.text), close=True)
        return Rendered(example.text, (span,), example.ref, begin=True, raw=True, literal=literal)
    text, spans, ends = "", [], set()
    for index, message in enumerate(example.messages):
        if message.role == "assistant" and example.prompt is not None and index == len(example.messages) - 1:
            text = example.prompt
        else:
            text += _heading(message)
        if message.role == "assistant" and message.train is not False:
            spans.append(Span(len(text), len(text) + len(message.content) + len(end)))
        if message.role == "assistant":
            ends.add(len(text) + len(message.content))
        text += message.content + _after(message, end)
    literal = literals.between(text, frozenset(ends)) if literals else ()
    return Rendered(text, tuple(spans), example.ref, begin=True, literal=literal)


def _heading(message: Message) -> str:
    return _HEADINGS[message.role]


def _after(message: Message, end: str) -> str:
    return f"{end}\n\n" if message.role == "assistant" else "\n\n"
