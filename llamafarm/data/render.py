"""From an example to the text a model sees, and the parts of it that it learns.

The tokenizer's own chat template is the truth. Which characters are the assistant's is told by its `{% generation %}`
marks, by those of the template that TRL trains with in its place as far as that writes the same text, or by what the
text gains with each turn. A turn is learned with the token that ends it, also where the marks leave that token out; the
prompt, the turn's header included, never is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from os.path import commonprefix
from typing import Any

from llamafarm.api import Example
from llamafarm.data.plain import render_plain
from llamafarm.data.spans import Rendered, Span
from llamafarm.data.strict import Fault
from llamafarm.data.turns import Answer, Chat, answers_of, chat_of, open_parts, texts_of
from llamafarm.errors import ModelError
from llamafarm.models.literal import Literals, literals_of
from llamafarm.models.templates import TooCostly, check_output, has_marks, limited, too_costly
from llamafarm.models.trl_templates import training_template

Range = tuple[int, int]


def renderer(tokenizer: Any, *, spans: bool = True, split_special_tokens: bool = True) -> Callable[[Example], Rendered]:
    """The way to render examples that suits the tokenizer: its chat template, or plain text without one.

    Args:
        tokenizer: A Hugging Face tokenizer.
        spans: Find what is learned of a chat template's text; else it is the text alone.
        split_special_tokens: Special tokens that stand in a row are text; else they are what they are in a template.

    Raises:
        ModelError: If the chat template is not valid Jinja.
    """
    literals = literals_of(tokenizer) if split_special_tokens else None
    if tokenizer.chat_template is None:
        return partial(_plain, end=tokenizer.eos_token, literals=literals)
    template = _Template(tokenizer, literals)
    return template.render if spans else template.text


def _plain(example: Example, *, end: str, literals: Literals | None) -> Rendered:
    if example.tools or any(message.tool_calls for message in example.messages):
        hint = "use a base model whose template knows tools"
        raise Fault("LF-TEMPLATE-010", "tools need a chat template, and the tokenizer has none", hint=hint)
    return render_plain(example, end=end, literals=literals)


class _Template:
    """A tokenizer's chat template, and the tokens that may end a turn."""

    def __init__(self, tokenizer: Any, literals: Literals | None) -> None:
        self._literals = literals
        self._template: str = tokenizer.get_chat_template()
        self._specials: dict[str, Any] = dict(tokenizer.special_tokens_map)
        self._marked = has_marks(self._template)
        self._training = None if self._marked else training_template(self._template)
        tokens = [token for token in tokenizer.get_added_vocab() if token.strip()]  # blank ones end nothing
        token = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)"
        self._token, self._token_next = re.compile(token), re.compile(rf"\s*(?:{token})")

    def text(self, example: Example) -> Rendered:
        """Render one example without looking for what is learned.

        Raises:
            Fault: If the template refuses the conversation.
        """
        if example.text is not None:
            return render_plain(example, end="", literals=self._literals)
        return self._shown(self._apply(chat_of(self._hidden(example)))[0], (), example)

    def render(self, example: Example) -> Rendered:
        """Render one example.

        Raises:
            Fault: If the template refuses the conversation, or the answers cannot be told from the rest.
        """
        if example.text is not None:
            return render_plain(example, end="", literals=self._literals)
        example = self._hidden(example)
        chat = chat_of(example)
        text, marks = self._apply(chat, marked=self._marked)
        if chat.tools and text == self._attempt(Chat(chat.turns)):
            hint = "use a base model whose template knows tools, or leave the column out"
            raise Fault("LF-TEMPLATE-010", "the chat template does not show the tools to the model", hint=hint)
        turns = list(answers_of(example.messages))
        marks = marks or self._trained_by_trl(text, turns, chat)
        if len(marks) == len(turns):
            spans = [self._span(text, turn, chat, mark) for turn, mark in zip(turns, marks, strict=True)]
        else:
            spans = [self._span(text, turn, chat) for turn in turns]
        learned = tuple(span for span, turn in zip(spans, turns, strict=True) if turn.learned)
        return self._shown(text, learned, example)

    def _trained_by_trl(self, text: str, turns: Sequence[Answer], chat: Chat) -> list[Range]:
        """What TRL's template for training marks, if it writes the same text.

        Its marks may take in what a model is prompted with, and line ends behind the turn: these are not learned.
        """
        if self._training is None:
            return []
        try:
            same, marks = self._apply(chat, marked=True, template=self._training)
        except Fault:
            return []
        if same != text or len(marks) != len(turns):
            return []
        return [self._narrowed(text, turn, chat, mark) for turn, mark in zip(turns, marks, strict=True)]

    def _narrowed(self, text: str, turn: Answer, chat: Chat, mark: Range) -> Range:
        prompt = self._attempt(chat.until(turn.index), header=True) if turn.index else None
        start = max(mark[0], min(_shared(text, prompt or ""), mark[1]))
        return start, start + len(text[start : mark[1]].rstrip())

    def _hidden(self, example: Example) -> Example:
        """The example with special tokens hidden from the template; itself if there are none in it.

        Raises:
            Fault: If they cannot be hidden.
        """
        literals = self._literals
        if literals is None or not any(map(literals.stand_in, texts_of(example))):
            return example
        try:
            messages = tuple(replace(message, **literals.hidden(open_parts(message))) for message in example.messages)
            return replace(example, messages=messages, tools=tuple(map(literals.hidden, example.tools)))
        except ValueError as error:
            hint = "take those characters out, or set dataset.split_special_tokens: false"
            raise Fault("LF-DATA-242", f"the row cannot be told from the template: {error}", hint=hint) from None

    def _shown(self, text: str, spans: tuple[Span, ...], example: Example) -> Rendered:
        text, literal = self._literals.shown(text) if self._literals else (text, ())
        return Rendered(text, spans, example.ref, literal=literal)

    def _span(self, text: str, turn: Answer, chat: Chat, mark: Range | None = None) -> Span:
        """From the turn's header, or where the mark begins, to the token that ends it."""
        start = mark[0] if mark else self._header_end(text, turn, chat)
        content = self._content(text, turn, chat, start)
        if start is None:
            start = content[0]
        end = content[1]
        tokens = list(self._token.finditer(text, end, mark[1])) if mark else []
        if mark and tokens and not text[tokens[-1].end() : mark[1]].strip():
            return Span(start, mark[1])
        limits = self._limits(text, turn, chat, end)
        end = limit = max(end, mark[1]) if mark else end
        for found in limits:
            limit = max(found, end)
            if token := self._token.search(text, end, limit):
                return Span(start, token.end())
        whole = self._token.search(text, end)
        limit = min(limit, whole.start()) if whole else limit  # where turns end otherwise, no token is cut in two
        return Span(start, end + len(text[end:limit].rstrip()), close=turn.last)

    def _header_end(self, text: str, turn: Answer, chat: Chat) -> int | None:
        """Where the model's own text begins: after what the template writes to prompt for it, if that stands here."""
        prefix = self._attempt(chat.until(turn.index), header=True) if turn.index else None
        return len(prefix) if prefix is not None and text.startswith(prefix) else None

    def _content(self, text: str, turn: Answer, chat: Chat, start: int | None) -> Range:
        """Where the content stands: right at `start` with a token after it, or where another content makes a change."""
        content = turn.content.strip()
        if start is not None and not turn.calls and not self._token.search(content):
            at = len(text) - len(text[start:].lstrip())
            if text.startswith(content, at) and self._token_next.match(text, at + len(content)):
                return at, at + len(content)
        first, last = self._calls(text, turn, chat) if turn.calls else self._changed(text, turn, chat)
        if first < last and (start is None or start < last):
            return first, last
        tried = "its marks and " if self._marked or self._training else ""
        message = f"turn {turn.index + 1}, an answer, cannot be found in what the chat template writes"
        hint = f"tried: {tried}rendering with and without the answer; mark the answers with {{% generation %}}"
        raise Fault("LF-TEMPLATE-003", message, hint=hint)

    def _calls(self, text: str, turn: Answer, chat: Chat) -> Range:
        """Where the calls of a turn stand, and what is said before them; nothing of what follows the turn."""
        until = chat.until(turn.index + 1)
        alone = self._attempt(until)
        if alone is not None:
            first, last = self._changed(alone, turn, until)
            if first < last and text.startswith(alone[:last]):
                return first, last
        first, last = self._changed(text, turn, chat)
        later = [str(item["content"]).strip() for item in chat.turns[turn.index + 1 :]]
        return (0, 0) if any(item and item in text[first:last] for item in later) else (first, last)

    def _changed(self, text: str, turn: Answer, chat: Chat) -> Range:
        """The part of the text that is another one when the turn's content is."""
        changed = {"role": "assistant", "content": _unlike(turn.content.strip())}
        other = self._attempt(chat.changed(turn.index, changed))
        if other is None:
            return 0, 0
        first = _shared(text, other)
        return first, len(text) - _shared(text[first:][::-1], other[first:][::-1])

    def _limits(self, text: str, turn: Answer, chat: Chat, end: int) -> Iterator[int]:
        """Where the turn ends at the latest: how far what follows it is the same when nothing follows it.

        The first answer is the quick one; it is too low if the template begins a last answer otherwise than others.
        """
        alone = None if turn.last else self._attempt(chat.until(turn.index + 1))
        if alone is None:
            yield len(text)
            return
        yield max(_shared(text, alone), end)
        _, alone_end = self._changed(alone, turn, chat.until(turn.index + 1))
        rest = text[end:].lstrip()
        yield len(text) - len(rest) + _shared(rest, alone[alone_end:].lstrip())

    def _attempt(self, chat: Chat, *, header: bool = False) -> str | None:
        """A part of a conversation, or nothing if the template refuses it."""
        try:
            return self._apply(chat, header=header)[0]
        except Fault:
            return None

    def _apply(
        self, chat: Chat, *, header: bool = False, marked: bool = False, template: str | None = None
    ) -> tuple[str, list[Range]]:
        from jinja2 import TemplateSyntaxError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            with limited():
                texts, marks = render_jinja_template(
                    conversations=[list(chat.turns)],
                    tools=[dict(tool) for tool in chat.tools] or None,
                    chat_template=template or self._template,
                    add_generation_prompt=header,
                    return_assistant_tokens_mask=marked,
                    **self._specials,
                )
        except TooCostly as error:
            raise too_costly("the tokenizer", f"{error} for one conversation") from None
        except TemplateSyntaxError as error:
            message = f"the chat template is not valid: {error.message} (line {error.lineno} of the template)"
            raise ModelError.of("LF-TEMPLATE-001", message) from None
        except Exception as error:  # noqa: BLE001  # a template is a program: it raises whatever it likes
            raise Fault("LF-TEMPLATE-002", f"the chat template refuses the conversation: {error}") from None
        check_output(texts[0], len(self._template) + sum(len(str(turn)) for turn in chat.turns), "the tokenizer")
        return texts[0], marks[0] if marked else []


def _shared(one: str, other: str) -> int:
    """The number of characters that both begin with."""
    return len(commonprefix([one, other]))  # noqa: RUF071  # texts, not paths


def _unlike(content: str) -> str:
    """A text that begins and ends with other characters, whatever a template does to letters."""
    return ("1" if content[:1] == "0" else "0") + " other " + ("1" if content[-1:] == "0" else "0")
