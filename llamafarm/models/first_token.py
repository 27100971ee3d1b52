"""What every row of a model begins with, where a method wants it so: asked of the methods, and kept with the model.

It stands in the model's configuration, so that training, generation and every measure put it where it is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
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


def saved_first_token(folder: Path) -> int | None:
    """The same of a whole model in a folder, told from its configuration file."""
    try:
        token = json.loads((folder / "config.json").read_text(encoding="utf-8")).get(_KEY)
    except (OSError, ValueError, AttributeError):
        return None  # an adapter has none; whoever loads a model says what is wrong with the file
    return token if isinstance(token, int) else None


def described_token(tokenizer: Any, token: int) -> str:
    """The token by its id and its text, for people."""
    return f"token {token} {str(tokenizer.convert_ids_to_tokens(token))!r}"


def begun(ids: Sequence[int], token: int | None) -> list[int]:
    """The ids with the token at their beginning, never twice."""
    return [*ids] if token is None or list(ids[:1]) == [token] else [token, *ids]
