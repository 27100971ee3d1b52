"""Makes rows fit into the longest allowed length: the prompt is cut first, and nothing is lost uncounted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from llamafarm.data.encode import Encoded

IGNORED = -100
"""The label of a position that is not learned."""


@dataclass(slots=True)
class TokenizedRow:
    """What a model sees of a row.

    Attributes:
        input_ids: Token ids.
        labels: For each position its id where it is learned, else -100. The shift to the next token is the loss's.
        example: Index of the example that it was made of.
    """

    input_ids: list[int]
    labels: list[int]
    example: int = field(default=0, compare=False)


def whole(encoded: Encoded, *, everything: bool) -> TokenizedRow:
    """Label all of it, or the learned positions; then what follows the last of them teaches nothing and is left out."""
    if everything:
        return TokenizedRow(encoded.ids, [IGNORED, *encoded.ids[1:]] if encoded.added else encoded.ids.copy())
    end = encoded.learned[-1][1]
    labels = [IGNORED] * end
    for start, stop in encoded.learned:
        labels[start:stop] = encoded.ids[start:stop]
    return TokenizedRow(encoded.ids[:end], labels)


def pieces(row: TokenizedRow, limit: int, first: int | None = None) -> Iterator[TokenizedRow]:
    """Cut raw text into rows of at most `limit` tokens.

    Each piece begins with the last token of the one before, which is not learned again, so that every token is
    predicted from one before it, once. Before that token stands `first`, if every row has to begin with it.
    """
    if len(row.input_ids) <= limit:
        yield row
        return
    yield TokenizedRow(row.input_ids[:limit], row.labels[:limit])
    begin = [] if first is None else [first]
    room = max(limit - len(begin), 1)
    for start in range(limit - 1, len(row.input_ids) - 1, max(room - 1, 1)):
        ids, labels = row.input_ids[start : start + room], row.labels[start : start + room]
        yield TokenizedRow([*begin, *ids], [IGNORED] * len(begin) + [IGNORED, *labels[1:]])


def truncate(row: TokenizedRow, limit: int, *, begin: int, answer: int, everything: bool) -> tuple[TokenizedRow, bool]:
    """Cut a row to `limit` tokens.

    The beginning goes first: the prompt, and in longer conversations the earlier turns; what is left of an answer whose
    beginning is gone is not learned. Only an answer that does not fit by itself loses its end, and then no end token is
    put in its place; an eighth of the row stays prompt.

    Args:
        row: The row.
        limit: The most tokens.
        begin: The number of tokens at the start (BOS) that always stay.
        answer: Where the last answer begins.
        everything: Prompts are learned too.

    Returns:
        The row, and whether it lost its end.
    """
    ids, labels = row.input_ids, row.labels
    if len(ids) <= limit:
        return row, False
    room = max(limit - begin, 0)
    prompt = min(answer - begin, max(limit // 8, 1))
    start = min(len(ids) - room, answer - prompt)
    tail = labels[start : start + room]
    if not everything:
        orphaned = next((at for at, value in enumerate(tail) if value == IGNORED), len(tail)) if start > begin else 0
        tail[:orphaned] = [IGNORED] * orphaned
    kept = TokenizedRow(ids[:begin] + ids[start : start + room], labels[:begin] + tail)
    return kept, start + room < len(ids)
