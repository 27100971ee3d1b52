"""Finds copies: of equal content, and of nearly equal words."""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from llamafarm.api import Example

THRESHOLD = 0.9
"""Share of common 5-character pieces from which two rows are near duplicates."""

SHORT = 200
"""Rows of fewer characters are near duplicates of none: short commands are alike by nature."""

_PERMUTATIONS = 128
_PIECE = 5
_NO_WORD = re.compile(r"[\W_]+")


def folded(example: Example) -> bytes:
    """16 bytes that rows share if they differ in capitals and spaces alone."""
    said = [example.messages, example.chosen, example.rejected]
    turns = ["\0".join(f"{message.role} {message.content}" for message in messages) for messages in said]
    text = "\0".join([*turns, example.text or "", "" if example.label is None else str(example.label)])
    return blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()


def words(example: Example) -> str:
    """What a row says, in small letters and without punctuation; system turns, which rows share, are left out."""
    turns = (*example.messages, *example.chosen, *example.rejected)
    said = [message.content for message in turns if message.role != "system"]
    return _NO_WORD.sub(" ", " ".join([*said, example.text or ""]).casefold()).strip()


class NearCopies:
    """Rows by their words; finds one that is nearly equal to another.

    Raises:
        ModuleNotFoundError: If datasketch is not installed.
    """

    def __init__(self) -> None:
        from datasketch import MinHash, MinHashLSH

        self._known = MinHashLSH(threshold=THRESHOLD, num_perm=_PERMUTATIONS)
        self._sketches: dict[str, Any] = {}
        self._new: Callable[[], Any] = lambda: MinHash(num_perm=_PERMUTATIONS)

    def find(self, text: str) -> str | None:
        """Where the nearest known row stands, if one is near enough."""
        if len(text) < SHORT:
            return None
        sketch = self._sketch(text)
        found = [(sketch.jaccard(self._sketches[place]), place) for place in self._known.query(sketch)]
        nearness, place = max(found, default=(0.0, ""))
        return place if nearness >= THRESHOLD else None

    def add(self, text: str, place: str) -> None:
        """Remember a row."""
        if len(text) < SHORT:
            return
        sketch = self._sketch(text)
        self._known.insert(place, sketch, check_duplication=False)
        self._sketches[place] = sketch

    def _sketch(self, text: str) -> Any:
        sketch = self._new()
        last = max(len(text) - _PIECE + 1, 1)
        sketch.update_batch(sorted({text[start : start + _PIECE].encode() for start in range(last)}))
        return sketch
