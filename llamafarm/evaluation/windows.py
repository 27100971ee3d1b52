"""Raw text as overlapping windows, so that each token is predicted once, and with as much before it as possible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llamafarm.data.fit import IGNORED, TokenizedRow


def windows(
    ids: Sequence[int], length: int, stride: int, *, example: int = 0, first: int | None = None
) -> Iterator[TokenizedRow]:
    """Cut a text's tokens into windows; what an earlier window has predicted is context only.

    Args:
        ids: Token ids of one text.
        length: The most tokens of a window.
        stride: How far the next window starts after the last, less than `length`, because the first token of a window
            has nothing before it to be predicted from; smaller gives more context at more cost.
        example: Index of the text.
        first: What every row of the model begins with; `ids` begin with it already.

    Yields:
        Rows whose labels, over all windows, name each position but the first exactly once.
    """
    assert 0 < stride < length - (first is not None)
    predicted = 1
    for begin in range(0, max(len(ids), 1), stride):
        before = [first] if first is not None and begin else []
        window = list(ids[begin : begin + length - len(before)])
        labels = [token if begin + place >= predicted else IGNORED for place, token in enumerate(window)]
        yield TokenizedRow([*before, *window], [IGNORED] * len(before) + labels, example)
        predicted = begin + len(window)
        if predicted >= len(ids):
            return
