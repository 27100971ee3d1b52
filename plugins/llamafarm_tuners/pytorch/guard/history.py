"""What the log entries of a run tell together: a rising loss, over- and underfitting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, Final

from llamafarm_tuners.pytorch.guard.statistics import slope_t

History = Sequence[Mapping[str, Any]]
"""Entries of `log_history` in `trainer_state.json`: those of training have `loss`, those of evaluations `eval_loss`."""

LAST: Final = 10
_FEWEST: Final = 6
_SURE: Final = 8.0
"""t of a rise that is believed. With 4 to 8 degrees of freedom less than one window in 1,000 to 20,000 of pure noise
has it, and the rise has to be a tenth besides."""
_RISE: Final = 0.1
_EVALUATIONS: Final = 3
_HARDLY: Final = 0.02
_ENTRIES: Final = 40


def rising_loss(history: History) -> str | None:
    """Whether the loss rises over the last 10 training entries (more than 5 are needed)."""
    losses = _training(history)[-LAST:]
    if len(losses) < _FEWEST or losses[-1] - losses[0] <= _RISE * abs(losses[0]) or slope_t(losses) < _SURE:
        return None
    return f"Loss increasing recently: {losses[0]:.4g} → {losses[-1]:.4g} over the last {len(losses)} log entries"


def overfitting(history: History) -> str | None:
    """Whether the held-out loss rose in each of the last 3 evaluations while the training loss fell."""
    places = [place for place, entry in enumerate(history) if "eval_loss" in entry]
    if len(places) <= _EVALUATIONS:
        return None
    recent = places[-_EVALUATIONS - 1 :]
    held_out = [float(history[place]["eval_loss"]) for place in recent]
    if not all(later > earlier for earlier, later in pairwise(held_out)):
        return None
    before, since = _training(history[: recent[0]]), _training(history[recent[-2] : recent[-1]])
    if not before or not since or fmean(since) >= fmean(before[-LAST:]):
        return None
    return (
        f"overfitting: the held-out loss rose from {held_out[0]:.4g} to {held_out[-1]:.4g} over {_EVALUATIONS} "
        "evaluations while the training loss fell"
    )


def underfitting(history: History) -> str | None:
    """Whether the training loss at the end of a run is still that of its beginning."""
    losses = _training(history)
    if len(losses) < _ENTRIES:
        return None
    first, last = fmean(losses[:LAST]), fmean(losses[-LAST:])
    if last < first * (1 - _HARDLY):
        return None
    return f"underfitting: the training loss was {first:.4g} at the beginning and is {last:.4g} at the end"


def _training(history: History) -> list[float]:
    return [float(entry["loss"]) for entry in history if "loss" in entry]
