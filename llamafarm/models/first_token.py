"""What every row of a model begins with, where a method wants it so: asked of the methods, and kept with the model.

It stands in the model's configuration, so that training, generation and every measure put it where it is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from llamafarm.api import Method
from llamafarm.errors import StrategyError

_KEY = "llamafarm_first_token"


def asked_first_token(methods: Iterable[Method[Any]], tokenizer: Any) -> int | None:
    """What the methods of a run want every row to begin with; None if none of them cares.

    Raises:
        ModelError: If the tokenizer does not have it.
        StrategyError: If two methods disagree.
    """
    wanted = [(method.name, token) for method in methods if (token := method.first_token(tokenizer)) is not None]
    if len({token for _, token in wanted}) > 1:
        listed = " and ".join(f"{name}: {token}" for name, token in wanted)
        message = f"the methods want rows to begin with different tokens ({listed})"
        raise StrategyError.of("LF-STRATEGY-060", message, hint="leave one of them out")
    return wanted[0][1] if wanted else None


def set_first_token(model: Any, token: int | None) -> None:
    """Note with the model what its rows begin with; None: nothing special."""
    config = model.config
    if token is not None:
        setattr(config, _KEY, token)
    elif hasattr(config, _KEY):
        delattr(config, _KEY)


def first_token(model: Any) -> int | None:
    """What the model's rows begin with; None: as its tokenizer and template write them."""
    token = getattr(getattr(model, "config", None), _KEY, None)
    return None if token is None else int(token)


def begun(ids: Sequence[int], token: int | None) -> list[int]:
    """The ids with the token at their beginning, never twice."""
    return [*ids] if token is None or list(ids[:1]) == [token] else [token, *ids]
