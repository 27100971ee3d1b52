"""What a command asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Flag:
    """A value from a command-line flag.

    Attributes:
        path: Dotted path below the fine-tuner's configuration (`training.num_epochs`), or a key of the strategy.
        value: The value.
        spelling: The flag as typed, e.g. `--epochs`.
    """

    path: str
    value: Any
    spelling: str


@dataclass(frozen=True, slots=True)
class Request:
    """A strategy and what overrides it.

    Attributes:
        strategy: Name, path or `path:entry`; None builds the strategy from the flags alone.
        flags: Values of flags.
        sets: `a.b=c` texts, the strongest.
    """

    strategy: str | None
    flags: tuple[Flag, ...] = field(default=())
    sets: tuple[str, ...] = field(default=())
