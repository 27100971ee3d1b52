"""How many positions a model knows, and what to do about rows that have more. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llamafarm.errors import ModelError
from llamafarm.models.inner import transformers_model

_OFFSETS = (0, 2)
"""Rows that tables of positions have beyond the model's longest row: OPT and its relatives begin with the third."""


@dataclass(frozen=True, slots=True)
class Positions:
    """What a model says of the length of its rows.

    Attributes:
        longest: Tokens of the longest row it was made for; None if it does not say.
        table: It looks positions up in a table, beyond whose end it cannot compute at all.
    """

    longest: int | None
    table: bool


def positions_of(model: Any) -> Positions:
    """Read `max_position_embeddings`, and look for a table of that many rows.

    Args:
        model: A transformers model, maybe within PEFT's wrapper. GPT-2 and OPT learn their table, GPT-J keeps one
            of sines; rotary models as Llama compute their positions, also those that they never saw.
    """
    model = transformers_model(model)
    longest = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 1:
        return Positions(None, table=False)
    tokens = model.get_input_embeddings()
    learned = (
        module.num_embeddings
        for module in model.modules()
        if module is not tokens and hasattr(module, "num_embeddings")
    )
    kept = (len(buffer) for name, buffer in model.named_buffers() if name.rpartition(".")[2] == "embed_positions")
    return Positions(longest, table=_holds(longest, learned) or _holds(longest, kept))


def virtual_tokens(model: Any) -> int:
    """How many vectors a learned prompt puts before each row."""
    return int(getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", 0) or 0)


def require_positions(model: Any, longest: int, what: str, hint: str) -> str:
    """Refuse rows that the model cannot compute; say what is to be said of those that it was not made for.

    Args:
        model: See `positions_of`.
        longest: Tokens of the longest row, with the vectors that a method puts before it.
        what: What is so long, for the message: "the longest row".
        hint: What to do; `{}` stands for the number of positions.

    Returns:
        A warning, or nothing.

    Raises:
        ModelError: If it looks positions up in a table that is shorter.
    """
    known = positions_of(model)
    if known.longest is None or longest <= known.longest:
        return ""
    told = f"{what} has {longest:,} tokens, and the model {known.longest:,} positions (max_position_embeddings)"
    if known.table:
        raise ModelError.of("LF-MODEL-222", told, hint=hint.format(known.longest))
    return f"{told}: beyond them it computes what it never learned; {hint.format(known.longest)}"


def _holds(longest: int, tables: Iterable[int]) -> bool:
    return any(rows - longest in _OFFSETS for rows in tables)
