"""How long rows are, and whether a few of them hold most of the text."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

from llamafarm.api import Example
from llamafarm.data.encode import Encoder
from llamafarm.data.fit import whole
from llamafarm.data.render import renderer
from llamafarm.data.strict import Fault

FEW = 50
"""Fewer rows than this rarely teach anything."""

HEAVY_SHARE = 0.25
"""The longest hundredth of all rows holding more than this share of the text is worth knowing."""

Measure = Callable[[Example], int]


def characters(example: Example) -> int:
    """The length of all turns, or of the text."""
    return len(example.text or "") + sum(len(message.content) for message in example.messages)


def tokens(tokenizer: Any) -> Measure:
    """The length that a model sees; the measure raises `Fault` when its template refuses a row.

    Raises:
        ModelError: If the tokenizer's template is not valid, or it names no end-of-text token.
    """
    render, encoder = renderer(tokenizer), Encoder(tokenizer)

    def measure(example: Example) -> int:
        encoded = encoder.encode([render(example)])[0]
        if isinstance(encoded, Fault):
            raise encoded
        return len(whole(encoded, everything=False).input_ids)

    return measure


def percentiles(lengths: array[int]) -> dict[str, int]:
    """`min`, `p5`, `p50`, `p95`, `p99`, `max` and `mean` of one or more lengths: each of the first six is a row's."""
    ordered, last = sorted(lengths), len(lengths) - 1
    marks = {"min": 0, "p5": 5, "p50": 50, "p95": 95, "p99": 99, "max": 100}
    found = {name: ordered[(last * mark + 50) // 100] for name, mark in marks.items()}
    return {**found, "mean": round(sum(ordered) / len(ordered))}


def heavy_share(lengths: array[int]) -> float:
    """The share of all text that stands in the longest hundredth of the rows (at least one)."""
    ordered = sorted(lengths, reverse=True)
    return sum(ordered[: max(len(ordered) // 100, 1)]) / (sum(ordered) or 1)
