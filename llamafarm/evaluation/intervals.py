"""Confidence intervals by the bootstrap: rows are drawn anew with replacement, the figure computed each time.

Percentile method at 95 %, 1,000 draws from a fixed seed, so that equal results give equal intervals
(Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_DRAWS = 1000
_SEED = 0
_TAILS = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value and its 95 % interval; without rows enough to draw from, the interval is empty.

    Attributes:
        value: The value on all rows.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure of each row, to be averaged: the mean is the sum of `parts` over the sum of `weights`.

    Attributes:
        parts: What each row adds.
        weights: How much each row counts: tokens for a loss, 1 for an answer.
        exponential: The figure is e to the mean (perplexity from negative log-likelihoods).
    """

    parts: Sequence[float]
    weights: Sequence[float]
    exponential: bool = False

    def figure(self) -> Figure:
        """The weighted mean over all rows with its interval."""
        parts, weights = _arrays(self)
        drawn = _draws(len(parts))
        return _figure(
            self._of(parts.sum(), weights.sum()), [self._of(parts[i].sum(), weights[i].sum()) for i in drawn]
        )

    def minus(self, other: Sample) -> Figure:
        """How much larger this figure is than another one of the same rows: both are drawn together, row by row.

        Raises:
            ValueError: If they are not of equally many rows.
        """
        if len(self.parts) != len(other.parts):
            raise ValueError(f"{len(self.parts)} rows cannot be compared with {len(other.parts)}")
        mine, theirs = _arrays(self), _arrays(other)
        rows = np.arange(len(self.parts))
        at = [self._difference(other, mine, theirs, index) for index in (rows, *_draws(len(rows)))]
        return _figure(at[0], at[1:])

    def _difference(self, other: Sample, mine: Any, theirs: Any, index: Any) -> float:
        own = self._of(mine[0][index].sum(), mine[1][index].sum())
        return own - other._of(theirs[0][index].sum(), theirs[1][index].sum())

    def _of(self, total: float, weight: float) -> float:
        if not weight:
            return float("nan")
        mean = float(total) / float(weight)
        return float(np.exp(min(mean, 700.0))) if self.exponential else mean


def _arrays(sample: Sample) -> tuple[Any, Any]:
    return np.asarray(sample.parts, dtype=np.float64), np.asarray(sample.weights, dtype=np.float64)


def _draws(rows: int) -> list[Any]:
    if rows < 2:
        return []
    generator = np.random.default_rng(_SEED)
    return [generator.integers(rows, size=rows) for _ in range(_DRAWS)]


def _figure(value: float, drawn: Sequence[float]) -> Figure:
    finite = [one for one in drawn if np.isfinite(one)]
    if not finite:
        return Figure(value)
    low, high = np.percentile(finite, _TAILS)
    return Figure(value, float(low), float(high))
