"""Reads the small versioned JSON files that stand beside saved weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from llamafarm.errors import ModelError

T = TypeVar("T")


def read_side_file(
    path: Path, version: int, understand: Callable[[Mapping[str, Any]], T], *, problem: str, hint: str
) -> T:
    """What a file says.

    Args:
        path: The file.
        version: The version that is understood.
        understand: From its content to what is meant. May raise ValueError, KeyError, TypeError and AttributeError.
        problem: Id of the error.
        hint: What the file is for, and what to do without it.

    Raises:
        ModelError: If it is missing or cannot be understood.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != version:
            raise ValueError(f"version {content['version']} is not {version}")  # noqa: TRY301  # one way to say it
        return understand(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = "is missing or cannot be understood" if isinstance(error, OSError) else "cannot be understood"
        raise ModelError.of(problem, f"{path.name} {what}: {error}", where=str(path), hint=hint) from None
