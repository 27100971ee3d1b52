"""Text with the parts of it that are learned."""

from __future__ import annotations

from dataclasses import dataclass

from llamafarm.api import RowRef


@dataclass(frozen=True, slots=True)
class Span:
    """Characters that are learned.

    Attributes:
        start: The first.
        end: After the last.
        close: The tokenizer's end-of-text token follows, as an id: the text does not show it.
    """

    start: int
    end: int
    close: bool = False


@dataclass(frozen=True, slots=True)
class Rendered:
    """An example as text.

    Attributes:
        text: All of it.
        spans: What is learned, in order.
        ref: The row it comes from.
        begin: The tokenizer puts its own first tokens (BOS) before it; a chat template writes them itself.
        raw: Text without a prompt: all of it is learned, and it may be cut into pieces.
        literal: Where special tokens begin that the row brings: they are text.
    """

    text: str
    spans: tuple[Span, ...]
    ref: RowRef
    begin: bool = False
    raw: bool = False
    literal: tuple[int, ...] = ()
