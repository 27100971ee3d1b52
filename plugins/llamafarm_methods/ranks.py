"""A rank that grows while it is trained: which rank a step is taken with."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from llamafarm.errors import StrategyError


def rank_at(step: int, steps: int, ranks: Sequence[int]) -> int:
    """The rank of a step; each gets `steps // len(ranks)` steps, the last also what is left over.

    Args:
        step: Its number; the first is 1.
        steps: Optimizer steps of the run, at least as many as ranks.
        ranks: In order.
    """
    return ranks[min((step - 1) // (steps // len(ranks)), len(ranks) - 1)]


def require_steps(steps: int, ranks: Sequence[int]) -> None:
    """Check that each rank gets a step.

    Raises:
        StrategyError: If there are fewer steps than ranks.
    """
    if steps < len(ranks):
        message = f"ranks {list(ranks)}: {steps} optimizer steps are fewer than {len(ranks)} ranks"
        raise StrategyError.of(
            "LF-TRAIN-077", message, hint="train for longer (max_steps, num_epochs), or name fewer ranks"
        )


def require_growable(given: Any) -> None:
    """Refuse what a growing rank does not go with.

    Args:
        given: The method's configuration, validated.

    Raises:
        ValueError: With the reason.
    """
    ranks = given.ranks
    if any(rank >= after for rank, after in pairwise(ranks)):
        raise ValueError(f"ranks {list(ranks)}: each is larger than the one before")
    if given.r != ranks[-1]:
        raise ValueError(f"r {given.r} is not the last of ranks {list(ranks)}: leave r out, or set it to {ranks[-1]}")
    if given.use_rslora:
        raise ValueError(
            "ranks keep alpha / r, so that growing changes no answer; use_rslora has another scale for each"
        )
    if given.rank_pattern or given.alpha_pattern:
        raise ValueError("ranks are those of all layers: leave out rank_pattern and alpha_pattern")
    if given.init_lora_weights not in (True, "gaussian"):
        raise ValueError(
            f"ranks: more of {given.init_lora_weights!r} cannot be made once training has begun; use true or gaussian"
        )
