"""From rendered text to token ids, with the positions that are learned, verified by decoding them again."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from unicodedata import normalize

from llamafarm.data.spans import Rendered, Span
from llamafarm.data.strict import Fault
from llamafarm.errors import ModelError
from llamafarm.models.literal import literals_of

Range = tuple[int, int]


@dataclass(slots=True)
class Encoded:
    """Token ids, and the ranges of positions that are learned.

    Attributes:
        ids: Token ids.
        learned: First and last (exclusive) positions of what is learned.
        added: The first token was put there because every row has to begin with it; it is never learned.
    """

    ids: list[int]
    learned: list[Range]
    added: bool = False


class Encoder:
    """Encodes with one tokenizer.

    Args:
        tokenizer: A Hugging Face tokenizer.
        first_token: What every row begins with: put there where it is not, never doubled. None: nothing is added.

    Raises:
        ModelError: If the tokenizer has no end-of-text token.
    """

    def __init__(self, tokenizer: Any, first_token: int | None = None) -> None:
        if tokenizer.eos_token_id is None:
            hint = "set eos_token in its tokenizer_config.json: without it no model learns to stop"
            raise ModelError.of("LF-TEMPLATE-004", "the tokenizer names no end-of-text token", hint=hint)
        self._tokenizer = tokenizer
        self._first = first_token
        self._end: int = tokenizer.eos_token_id
        self._begin = _first_tokens(tokenizer)
        probe = f"a{tokenizer.eos_token} a{tokenizer.eos_token}a"
        self._exact = self._decode(self._ids([probe])[0]) == probe

    def encode(self, rows: Sequence[Rendered]) -> list[Encoded | Fault]:
        """Encode rows; one whose answers do not come back from their tokens is a fault."""
        if any(row.literal for row in rows):
            plain = iter(self.encode([row for row in rows if not row.literal]))
            return [self._with_literals(row) if row.literal else next(plain) for row in rows]
        if not rows or not self._tokenizer.is_fast:
            return [self._by_pieces(row) for row in rows]
        batch = self._tokenizer(
            [row.text for row in rows],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        return [
            self._by_offsets(row, ids, offsets)
            for row, ids, offsets in zip(rows, batch["input_ids"], batch["offset_mapping"], strict=True)
        ]

    def begins(self, ids: list[int]) -> int:
        """1 if the ids begin with a token that has to stay first (the tokenizer's BOS token or ours), else 0."""
        firsts = {token for token in (self._tokenizer.bos_token_id, self._first) if token is not None}
        return int(bool(ids) and ids[0] in firsts)

    def _with_literals(self, row: Rendered) -> Encoded | Fault:
        """A row with special tokens that are text."""
        try:
            return self._by_offsets(row, *literals_of(self._tokenizer).encode(row.text, row.literal))
        except ValueError as error:
            hint = "take the special tokens out of the row, or set dataset.split_special_tokens: false"
            return Fault("LF-DATA-243", f"special tokens stand in the row, and {error}", hint=hint)

    def _by_offsets(self, row: Rendered, ids: list[int], offsets: Sequence[Range]) -> Encoded | Fault:
        """Positions from the characters that each token stands for."""
        ranges = [_positions(offsets, span) for span in row.spans]
        for span, (start, end) in zip(row.spans, ranges, strict=True):
            if not self._same(ids[start:end], row.text[span.start : span.end]):
                return self._by_pieces(row)
        return self._closed(row, ids, ranges)

    def _by_pieces(self, row: Rendered) -> Encoded | Fault:
        """Learned and other parts encoded apart, as generation does it: no token goes across a boundary."""
        cuts = [0, *(position for span in row.spans for position in (span.start, span.end)), len(row.text)]
        texts = [row.text[start:end] for start, end in pairwise(cuts)]
        ids: list[int] = []
        ranges: list[Range] = []
        for number, (text, piece) in enumerate(zip(texts, self._pieces(row, cuts, texts), strict=True)):
            if number % 2:
                if not self._same(piece, text):
                    came_back = self._decode(piece)
                    return Fault("LF-TEMPLATE-005", f"the tokenizer turns {text[:40]!r} into {came_back[:40]!r}")
                ranges.append((len(ids), len(ids) + len(piece)))
            ids += piece
        return self._closed(row, ids, ranges)

    def _closed(self, row: Rendered, ids: list[int], ranges: list[Range]) -> Encoded:
        """Add what the tokenizer puts before a text, and the end-of-text token after the spans that want it."""
        begin = self._begin if row.begin and ids[: len(self._begin)] != self._begin else []
        first = [] if self._first is None or [*begin, *ids][:1] == [self._first] else [self._first]
        out, learned, copied = [*first, *begin], [], 0
        for span, (start, end) in zip(row.spans, ranges, strict=True):
            out += ids[copied:end]
            begins = len(out) - (end - start)
            if span.close:
                out.append(self._end)
            learned.append((begins, len(out)))
            copied = end
        return Encoded(out + ids[copied:], learned, bool(first))

    def _same(self, ids: list[int], text: str) -> bool:
        decoded = self._decode(ids)
        if decoded == text:
            return True
        pair = [normalize("NFC", decoded), normalize("NFC", text)]
        if not self._exact:  # sentencepiece adds spaces at some places and leaves them out at others
            pair = [side.replace(" ", "") for side in pair]
        return pair[0] == pair[1]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _pieces(self, row: Rendered, cuts: Sequence[int], texts: Sequence[str]) -> list[list[int]]:
        if not row.literal:
            return self._ids(texts)
        places = [
            tuple(place - start for place in row.literal if start <= place < end) for start, end in pairwise(cuts)
        ]
        literals = literals_of(self._tokenizer)
        return [literals.encode(text, literal)[0] for text, literal in zip(texts, places, strict=True)]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        batch: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return batch


def _first_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text: BOS for some, nothing for others."""
    whole: list[int] = tokenizer("a")["input_ids"]
    alone: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    at = next(at for at in range(len(whole)) if whole[at : at + len(alone)] == alone)
    return whole[:at]


def _positions(offsets: Sequence[Range], span: Span) -> Range:
    """The tokens that end inside the span.

    Some tokenizers leave blanks out of offsets, so that a blank token is empty and stands at its end: only ends can be
    trusted.
    """
    ends: Callable[[Range], int] = lambda offset: offset[1]  # noqa: E731
    return bisect_right(offsets, span.start, key=ends), bisect_right(offsets, span.end, key=ends)
