"""Finds the token ids before and after answers in what a chat template writes, and verifies them on known answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os.path import commonprefix
from types import MappingProxyType
from typing import Any

from llamafarm.api import Example, Message, RowRef
from llamafarm.data.audit import stop_tokens
from llamafarm.data.encode import Encoded, Encoder
from llamafarm.data.explicit import ExplicitMask
from llamafarm.data.render import renderer
from llamafarm.data.spans import Rendered
from llamafarm.data.strict import Fault
from llamafarm.errors import ModelError

KNOWN: Mapping[str, ExplicitMask] = MappingProxyType(
    {
        "tinyllama": ExplicitMask((29966, 29989, 465, 22137, 29989, 29958, 13), (2,)),
        "qwen2": ExplicitMask((151644, 77091, 198), (151645, 198)),
        "polka-1.1": ExplicitMask((43883, 20255, 13), (43882, 29871, 13)),
        "llama-3": ExplicitMask((128006, 78191, 128007, 271), (128009,)),
    }
)
"""Ids of some families, by a part of the model's name. The end of a turn alone ends an answer of Llama 3: what follows
it there is the next prompt."""

_MARK = "%%%%%%%%%%%%%%%%"
_QUESTIONS = ("How are you?", "What is the temperature", "Yes or no!")
_ANSWERS = (_MARK, "It is 21 degrees.", "yes")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to write the prefix, its ids, and whether they find the known answers."""

    name: str
    prefix: tuple[int, ...]
    finds: bool


@dataclass(frozen=True, slots=True)
class Split:
    """What stands around answers.

    Attributes:
        template: The chat template; empty if there is none.
        tokens: The tokens of the conversation in which it was found: an answer alone, or with a question.
        lone: It was found around an answer without a question.
        prefix: Text before an answer.
        suffix: Text after it that is learned.
        suffix_ids: Its ids.
        variants: The ways to write the prefix.
    """

    template: str
    tokens: tuple[str, ...]
    lone: bool
    prefix: str
    suffix: str
    suffix_ids: tuple[int, ...]
    variants: tuple[Variant, ...]

    @property
    def mask(self) -> ExplicitMask | None:
        """The ids that find the answers, if any do."""
        return next((ExplicitMask(one.prefix, self.suffix_ids) for one in self.variants if one.finds), None)

    def require(self) -> ExplicitMask:
        """The ids that find the answers.

        Raises:
            ModelError: If none do.
        """
        if self.mask is None:
            message = f"no token ids for {self.prefix!r} and {self.suffix!r} find the answers"
            raise ModelError.of("LF-TEMPLATE-020", message, hint="`llamafarm find-split MODEL` shows what was tried")
        return self.mask


def known_ids(model: str, tokens: int) -> tuple[str, ExplicitMask] | None:
    """The family that a model's name points to, and its ids, if a tokenizer of so many tokens has them."""
    name = model.casefold().replace("_", "-").replace("llama3", "llama-3")
    found = next(((family, ids) for family, ids in KNOWN.items() if family in name), None)
    return found if found and max(*found[1].prefix, *found[1].suffix) < tokens else None


def find_split(tokenizer: Any) -> Split:
    """Find the ids around answers.

    An answer alone shows them bare. If the template refuses that, or writes something else around it than around
    answers in conversations, a question with an answer is looked at.

    Raises:
        ModelError: If the template refuses a question with an answer, or writes nothing before answers.
    """
    render = renderer(tokenizer)
    chats = [_chat(question, answer) for question, answer in zip(_QUESTIONS, _ANSWERS, strict=True)]
    chats.append(_chat("One", "First.", "Two;", "Second."))
    try:
        rows = [render(chat) for chat in chats]
    except Fault as fault:
        raise ModelError([fault.at("a question with an answer")]) from None
    if (lone := _lone(render)) is not None:
        with suppress(ModelError):
            found = _tried([lone], rows, tokenizer, lone=True)
            if found.mask is not None:
                return found
    return _tried(rows, rows, tokenizer, lone=False)


def _tried(shown: Sequence[Rendered], rows: Sequence[Rendered], tokenizer: Any, *, lone: bool) -> Split:
    """What stands around the answers of `shown`, verified on those of `rows`."""
    encoder = Encoder(tokenizer)
    prefix, suffix = _around(shown, tokenizer)
    ids = tuple(_ids(tokenizer, suffix))
    first, *_ = encoded = [_encoded(encoder, row) for row in rows]
    whole = [_encoded(encoder, Rendered(row.text, (), row.ref, begin=row.begin)) for row in rows]
    variants = [
        Variant(name, tried, _finds(ExplicitMask(tried, ids), whole, encoded))
        for name, tried in _variants(tokenizer, prefix, first)
    ]
    names = tuple(map(str, tokenizer.convert_ids_to_tokens(_encoded(encoder, shown[0]).ids)))
    template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
    return Split(template, names, lone, prefix, suffix, ids, tuple(variants))


def _chat(*contents: str) -> Example:
    turns = (Message("assistant" if number % 2 else "user", text) for number, text in enumerate(contents))
    return Example(RowRef("find-split", 1), tuple(turns))


def _encoded(encoder: Encoder, row: Rendered) -> Encoded:
    (encoded,) = encoder.encode([row])
    if isinstance(encoded, Fault):
        raise ModelError([encoded.at("a question with an answer")])
    return encoded


def _around(rows: Sequence[Rendered], tokenizer: Any) -> tuple[str, str]:
    """The text before answers after the turn before them has ended, and what is learned after their text."""
    before = [row.text[: row.spans[0].start][::-1] for row in rows]
    prefix = commonprefix(before)[::-1]  # noqa: RUF071  # texts, not paths
    stops = [tokenizer.decode([stop], skip_special_tokens=False) for stop in stop_tokens(tokenizer)[1]]
    ended = max((prefix.rfind(stop) + len(stop) for stop in stops if stop in prefix), default=0)
    prefix = prefix[ended:].removeprefix(tokenizer.bos_token or "").lstrip()
    span = rows[0].spans[0]
    suffix = rows[0].text[span.start : span.end].partition(_MARK)[2] + tokenizer.eos_token * span.close
    stop_at = min((suffix.find(stop) for stop in stops if stop in suffix), default=0)
    suffix = suffix[stop_at:] if not suffix[:stop_at].strip() else suffix
    if not prefix or not suffix:
        raise ModelError.of("LF-TEMPLATE-020", "the chat template writes nothing before answers, or nothing after")
    return prefix, suffix


def _variants(tokenizer: Any, prefix: str, row: Encoded) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "no leading whitespace", tuple(_ids(tokenizer, prefix))
    yield "leading whitespace", tuple(_ids(tokenizer, f" {prefix}"))
    yield "leading newline", tuple(_ids(tokenizer, f"\n{prefix}"))
    yield "stripped", tuple(_ids(tokenizer, prefix.strip()))
    start = row.learned[0][0]
    for at in range(start - 1, -1, -1):
        text = tokenizer.decode(row.ids[at:start], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if text.lstrip().replace(" ", "").endswith(prefix.replace(" ", "")):
            yield "as it stands in a conversation", tuple(row.ids[at:start])
            return


def _finds(mask: ExplicitMask, whole: Sequence[Encoded], known: Sequence[Encoded]) -> bool:
    """Whether the ids keep the known answers with their ends, token for token, and nothing else."""
    return all(
        [row.ids[start:end] for start, end in mask.find(row.ids)]
        == [answer.ids[start:end] for start, end in answer.learned]
        for row, answer in zip(whole, known, strict=True)
    )


def _lone(render: Callable[[Example], Rendered]) -> Rendered | None:
    """An answer without a question; None if the template refuses it, or loses it."""
    try:
        row = render(Example(RowRef("find-split", 1), (Message("assistant", _MARK),)))
    except Fault:
        return None
    return row if row.spans and _MARK in row.text else None


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
