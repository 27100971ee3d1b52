"""From an example to the text a model sees, and the parts of it that it learns.

The tokenizer's own chat template is the truth. Which characters are the assistant's is told by the template's
`{% generation %}` marks, or by what the text gains with each turn. A turn is learned with the token that ends it,
also where the marks leave that token out; the prompt, the turn's header included, never is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from llamafarm.api import Example, Message
from llamafarm.data.plain import render_plain
from llamafarm.data.spans import Rendered, Span
from llamafarm.data.strict import Fault
from llamafarm.errors import ModelError

_MARK = re.compile(r"{%-?\+?\s*generation\s*[-+]?%}")
Chat = list[dict[str, str]]


def renderer(tokenizer: Any) -> Callable[[Example], Rendered]:
    """The way to render examples that suits the tokenizer: its chat template, or plain text without one.

    Raises:
        ModelError: If the chat template is not valid Jinja.
    """
    if tokenizer.chat_template is None:
        return render_plain
    return _Template(tokenizer).render


@dataclass(frozen=True, slots=True)
class _Turn:
    """An assistant turn: its place in the conversation, and whether it is learned."""

    index: int
    content: str
    learned: bool
    last: bool


class _Template:
    def __init__(self, tokenizer: Any) -> None:
        self._template: str = tokenizer.get_chat_template()
        self._specials: dict[str, Any] = dict(tokenizer.special_tokens_map)
        self._marked = bool(_MARK.search(self._template))
        tokens = sorted((str(token) for token in tokenizer.get_added_vocab()), key=len, reverse=True)
        self._token = re.compile("|".join(map(re.escape, tokens)) or "(?!)")

    def render(self, example: Example) -> Rendered:
        """Render one example.

        Raises:
            Fault: If the template refuses the conversation, or the answers cannot be told from the rest.
        """
        if example.text is not None:
            return render_plain(example)
        chat = [{"role": message.role, "content": message.content} for message in example.messages]
        text, marks = self._apply(chat, marked=self._marked)
        turns = list(_turns(example.messages))
        if marks and len(marks) == len(turns):
            spans = [self._marked_span(text, mark, turn, chat) for turn, mark in zip(turns, marks, strict=True)]
        else:
            spans = [self._span(text, turn, chat) for turn in turns]
        learned = tuple(span for span, turn in zip(spans, turns, strict=True) if turn.learned)
        return Rendered(text, learned, example.ref)

    def _span(self, text: str, turn: _Turn, chat: Chat) -> Span:
        start, header_known = self._start(text, turn, chat)
        limit = self._limit(text, turn, chat, start)
        for content in (turn.content, turn.content.strip()):
            found = text.find(content, start, limit)
            if found >= 0:
                return self._closed(text, start if header_known else found, found + len(content), limit, turn)
        raise self._lost(turn, "its text does not stand in the rendered conversation as it is")

    def _start(self, text: str, turn: _Turn, chat: Chat) -> tuple[int, bool]:
        """Where the turn begins: after its header when the template can write one, else before it."""
        before = chat[: turn.index]
        for header in (True, False):
            prefix, _ = self._apply(before, header=header)
            if text.startswith(prefix):
                return len(prefix), header
        raise self._lost(turn, "what stands before it is rendered differently once it is there")

    def _limit(self, text: str, turn: _Turn, chat: Chat, start: int) -> int:
        """Where the turn ends at the latest: where the conversation up to it and the whole one part."""
        if turn.last:
            return len(text)
        alone, _ = self._apply(chat[: turn.index + 1])
        shared = len(commonprefix([text, alone]))  # noqa: RUF071  # texts, not paths
        return shared if shared > start else len(text)

    def _marked_span(self, text: str, mark: tuple[int, int], turn: _Turn, chat: Chat) -> Span:
        """A marked turn, with the token that ends it."""
        start, end = mark
        marked = list(self._token.finditer(text, start, end))
        if marked and not text[marked[-1].end() : end].strip():
            return Span(start, end)
        return self._closed(text, start, end, self._limit(text, turn, chat, start), turn)

    def _closed(self, text: str, start: int, end: int, limit: int, turn: _Turn) -> Span:
        """Extend a turn to the token that ends it; the last turn of a template without one gets the end of text."""
        if token := self._token.search(text, end, limit):
            return Span(start, token.end())
        rest = text[end:limit].rstrip()
        return Span(start, end + len(rest), close=turn.last)

    def _apply(self, chat: Chat, *, header: bool = False, marked: bool = False) -> tuple[str, list[tuple[int, int]]]:
        from jinja2 import TemplateError, TemplateSyntaxError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, marks = render_jinja_template(
                conversations=[chat],
                chat_template=self._template,
                add_generation_prompt=header,
                return_assistant_tokens_mask=marked,
                **self._specials,
            )
        except TemplateSyntaxError as error:
            message = f"the chat template is not valid: {error.message} (line {error.lineno} of the template)"
            raise ModelError.of("LF-TEMPLATE-001", message) from None
        except TemplateError as error:
            raise Fault("LF-TEMPLATE-002", f"the chat template refuses the conversation: {error}") from None
        return texts[0], marks[0] if marked else []

    def _lost(self, turn: _Turn, reason: str) -> Fault:
        tried = "marks and prefixes" if self._marked else "prefixes (the template has no {% generation %} marks)"
        message = f"turn {turn.index + 1}, an answer, cannot be found in what the chat template writes: {reason}"
        return Fault("LF-TEMPLATE-003", message, hint=f"tried: {tried}; mark the answers in the template")


def _turns(messages: tuple[Message, ...]) -> Iterator[_Turn]:
    for index, message in enumerate(messages):
        if message.role == "assistant":
            yield _Turn(index, message.content, message.train is not False, index == len(messages) - 1)
