"""The chat templates that TRL ships: as the models have them, and again with generation marks, for training.

They are read from its folder; TRL itself is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

_MARKED = "_training"
_PIECES = frozenset({"idefics3", "llava_next", "smolvlm"})
"""They take a turn's content in pieces, texts and pictures, and no plain text."""


@dataclass(frozen=True, slots=True)
class Shipped:
    """A model's chat template, and the one that TRL trains with in its place."""

    source: str
    training: str


@cache
def shipped() -> Mapping[str, Shipped]:
    """Name → templates, as far as there is one for training; empty without TRL."""
    found = find_spec("trl")
    folder = Path(found.origin).with_name("chat_templates") if found and found.origin else None
    files = sorted(folder.glob(f"*{_MARKED}.jinja")) if folder else []
    pairs = {name: file for file in files if (name := file.stem.removesuffix(_MARKED)) not in _PIECES}
    plain = {name: file.with_name(f"{name}.jinja") for name, file in pairs.items()}
    return MappingProxyType(
        {name: Shipped(_text(plain[name]), _text(file)) for name, file in pairs.items() if plain[name].is_file()}
    )


@cache
def training_template(template: str) -> str | None:
    """TRL's template for training, if a tokenizer's template is one that TRL knows, to the letter."""
    return next((one.training for one in shipped().values() if one.source == template), None)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")
