"""The processes of a run, as launchers (`torchrun`, `accelerate launch`) tell each of them."""

from __future__ import annotations

import os


def world_size() -> int:
    """How many processes carry out this run together."""
    return max(1, _number("WORLD_SIZE", 1))


def is_follower() -> bool:
    """Whether another process of this run owns its folder and speaks for it."""
    return world_size() > 1 and _number("RANK", 0) > 0


def _number(name: str, default: int) -> int:
    told = os.environ.get(name, "")
    return int(told) if told.isdigit() else default
