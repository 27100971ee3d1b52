"""What a run added to a base model's vocabulary: a small file beside an adapter, so that loading can add it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llamafarm.models.side_file import read_side_file

VOCABULARY_FILE = "llamafarm_vocabulary.json"
_VERSION = 1
_ATTRIBUTE = "llamafarm_additions"


@dataclass(frozen=True, slots=True)
class Additions:
    """New tokens and the embedding that holds them.

    Attributes:
        rows: Rows of the embedding, tokens and spare ones.
        new: Tokens that the base model does not know → their ids.
        pad: The id of the PAD token, which nothing learns; None if there is none.
    """

    rows: int
    new: Mapping[str, int] = field(default_factory=dict)
    pad: int | None = None

    @property
    def learned(self) -> dict[str, int]:
        """The new tokens that mean something: all but PAD."""
        return {token: number for token, number in self.new.items() if number != self.pad}


def additions_of(model: Any) -> Additions | None:
    """What was added to a model, adapters around it or not; None if nothing was."""
    found = getattr(model, _ATTRIBUTE, None)
    return found if isinstance(found, Additions) else None


def remember_additions(model: Any, additions: Additions) -> None:
    """Write down on the model itself what was added to it: methods look there for tokens that must be learned."""
    setattr(model, _ATTRIBUTE, additions)


def write_additions(folder: Path, model: Any) -> None:
    """Write the file if anything was added to the model."""
    if found := additions_of(model):
        text = json.dumps({"version": _VERSION, **asdict(found)}, indent=2, ensure_ascii=False)
        (folder / VOCABULARY_FILE).write_text(f"{text}\n", encoding="utf-8")


def read_additions(folder: Path) -> Additions | None:
    """What was added to the base of the adapter in `folder`; None if nothing was, or it was not made by us.

    Raises:
        ModelError: If the file is there but cannot be understood.
    """
    path = folder / VOCABULARY_FILE
    if not path.is_file():
        return None
    hint = "it says which tokens were added to the base model: take the file from the run"
    return read_side_file(path, _VERSION, _understood, problem="LF-MODEL-061", hint=hint)


def _understood(content: Mapping[str, Any]) -> Additions:
    new = {str(token): int(number) for token, number in content["new"].items()}
    pad = content["pad"]
    return Additions(int(content["rows"]), new, None if pad is None else int(pad))
