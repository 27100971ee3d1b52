"""Masks by token ids, the last resort: what stands between a prefix and a suffix is learned, the suffix included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llamafarm.api import DatasetConfig, Example
from llamafarm.data.encode import Range
from llamafarm.errors import DataError


@dataclass(frozen=True, slots=True)
class ExplicitMask:
    """Token ids before and after each answer."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    def find(self, ids: Sequence[int]) -> Iterator[Range]:
        """Each answer with its suffix; one without suffix goes to the end, and nothing is made up there."""
        at = 0
        while (before := _index(ids, self.prefix, at)) is not None:
            start = before + len(self.prefix)
            after = _index(ids, self.suffix, start)
            at = len(ids) if after is None else after + len(self.suffix)
            if start < at:
                yield start, at

    def learned(self, example: Example, ids: Sequence[int]) -> list[Range]:
        """The answers of an example that are learned.

        Raises:
            DataError: If some answers are not to be learned and the ids do not tell which they are.
        """
        found = list(self.find(ids))
        answers = [message.train is not False for message in example.messages if message.role == "assistant"]
        if all(answers):
            return found
        if len(found) != len(answers):
            message = f"prefix_ids find {len(found)} answers of {len(answers)}, so that none can be left out"
            raise DataError.of("LF-DATA-093", message, where=str(example.ref))
        return [place for place, learned in zip(found, answers, strict=True) if learned]


def explicit_mask(dataset: DatasetConfig, tokenizer: Any) -> ExplicitMask | None:
    """The mask that the dataset's configuration names, if it does; a missing half is found in the chat template.

    Raises:
        ModelError: If it cannot be found there.
    """
    prefix, suffix = dataset.prefix_ids, dataset.suffix_ids
    if prefix is None and suffix is None:
        return None
    if prefix is None or suffix is None:
        from llamafarm.data.find_split import find_split

        found = find_split(tokenizer).require()
        return ExplicitMask(prefix or found.prefix, suffix or found.suffix)
    return ExplicitMask(prefix, suffix)


def _index(ids: Sequence[int], wanted: tuple[int, ...], start: int) -> int | None:
    size = len(wanted)
    return next((at for at in range(start, len(ids) - size + 1) if tuple(ids[at : at + size]) == wanted), None)
