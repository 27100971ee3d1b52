"""Robust figures over a window of values."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import Final

FEWEST: Final = 20
"""Values that a window needs before anything is said of the next one."""

_TO_DEVIATION: Final = 1.4826
"""Median absolute deviation → standard deviation, for a normal distribution: 1 / Φ⁻¹(3/4)."""


def robust_z(value: float, window: Sequence[float], least: float) -> float:
    """How many robust standard deviations a value lies above the median of a window.

    Args:
        value: The new value.
        window: The values before it; fewer than `FEWEST` give 0.
        least: Smallest deviation that is assumed: what moves by less is no event, however calm it was before.
    """
    if len(window) < FEWEST:
        return 0.0
    middle = median(window)
    deviation = _TO_DEVIATION * median(abs(item - middle) for item in window)
    return (value - middle) / max(deviation, least)


def slope_t(values: Sequence[float]) -> float:
    """The t statistic of a straight line's slope through equally spaced values, by least squares.

    Values that lie exactly on a line have an infinite one (or 0 if the line is level).
    """
    count = len(values)
    middle, mean = (count - 1) / 2, fmean(values)
    spread = sum((place - middle) ** 2 for place in range(count))
    slope = sum((place - middle) * (value - mean) for place, value in enumerate(values)) / spread
    residual = sum((value - mean - slope * (place - middle)) ** 2 for place, value in enumerate(values))
    error: float = (residual / (count - 2) / spread) ** 0.5
    if error == 0:
        return 0.0 if slope == 0 else float("inf") if slope > 0 else float("-inf")
    return slope / error
