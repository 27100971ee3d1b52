"""Leaves rows out by rules of the configuration, and counts them by the rule."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from llamafarm.api import Example, FiltersConfig
from llamafarm.errors import DataError
from llamafarm.models.templates import TooCostly, limited

_EMPTY = "LF-DATA-013"
_SECONDS = 2.0
"""CPU time that the patterns may take on one row: they take microseconds."""


class Filters:
    """The rules of one dataset, all of its sources together.

    Attributes:
        dropped: `dropped_…` → rows that this rule left out: the first one that applies counts.
    """

    def __init__(self, config: FiltersConfig) -> None:
        self.dropped: Counter[str] = Counter()
        self._config = config
        self._patterns = [re.compile(pattern) for pattern in config.remove_patterns]
        self._seen: set[bytes] = set()

    def summary(self) -> str:
        """What was left out, in words; empty if nothing was."""
        named = {name.removeprefix("dropped_").replace("_", " "): count for name, count in self.dropped.items()}
        return ", ".join(f"{name} {count:,}" for name, count in named.items() if count)

    def forgives(self, error: DataError) -> bool:
        """Whether a row that cannot be used is left out instead: its texts are empty, and nothing else is wrong."""
        empty = self._config.filter_empty and all(problem.id == _EMPTY for problem in error.problems)
        self.dropped["dropped_empty"] += empty
        return empty

    def leaves_out(self, example: Example, content: bytes) -> bool:
        """Whether a rule leaves a row out.

        Args:
            example: The row.
            content: Digest of what it says.

        Raises:
            DataError: If a pattern takes too long on it.
        """
        reason = next(self._reasons(example, content), None)
        if reason:
            self.dropped[reason] += 1
        return reason is not None

    def _reasons(self, example: Example, content: bytes) -> Iterator[str]:
        config = self._config
        answers = [turn.content for turn in example.messages if turn.role == "assistant"]
        asked = sum(len(turn.content) for turn in example.messages) - sum(map(len, answers[-1:]))
        learned = example.text if example.text is not None else max(answers, key=len, default="")
        if config.max_input_length and asked > config.max_input_length:
            yield "dropped_long_input"
        if config.max_output_length and len(learned) > config.max_output_length:
            yield "dropped_long_output"
        if config.single_response_only and len(answers) > 1:
            yield "dropped_several_answers"
        if self._patterns and self._found(example):
            yield "dropped_pattern"
        if config.remove_duplicates:
            if content in self._seen:
                yield "dropped_duplicate"
            self._seen.add(content)

    def _found(self, example: Example) -> bool:
        texts = [example.text or "", *(turn.content for turn in example.messages)]
        try:
            with limited(_SECONDS):
                return any(pattern.search(text) for pattern in self._patterns for text in texts)
        except TooCostly as error:
            message = f"a pattern of dataset.filters.remove_patterns {error} on this row"
            hint = "write it without repetitions inside of repetitions, such as (a+)+"
            raise DataError.of("LF-DATA-251", message, where=str(example.ref), hint=hint) from None


def require_rest(examples: Sequence[Example], filters: Filters) -> None:
    """Refuse rules that leave nothing to train on.

    Raises:
        DataError: If no row is left.
    """
    if not examples and (why := filters.summary()):
        raise DataError.of("LF-DATA-250", f"dataset.filters leave no row to train on: {why}", hint="loosen them")
