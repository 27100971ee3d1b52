"""What a check finds: each finding belongs to a rule, and each rule has a level."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Level(StrEnum):
    """How bad it is: training refuses or is measured wrongly, a person should look, good to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


RULES: Mapping[str, Level] = MappingProxyType(
    {
        "unreadable": Level.ERROR,
        "unusable": Level.ERROR,
        "empty-field": Level.ERROR,
        "template": Level.ERROR,
        "overlap": Level.ERROR,
        "duplicate": Level.WARNING,
        "near-duplicate": Level.WARNING,
        "near-overlap": Level.WARNING,
        "control-character": Level.WARNING,
        "encoding": Level.WARNING,
        "truncated": Level.WARNING,
        "role-order": Level.WARNING,
        "too-long": Level.WARNING,
        "too-few": Level.WARNING,
        "balance": Level.NOTE,
        "not-checked": Level.NOTE,
    }
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes:
        rule: A key of `RULES`.
        where: `file:line`, or the file.
        message: One line; never the row's own words, which may be private.
    """

    rule: str
    where: str
    message: str

    @property
    def level(self) -> Level:
        """That of its rule."""
        return RULES[self.rule]


class Findings:
    """Findings in the order in which they were made.

    Attributes:
        counts: How many there are by rule.
        fixed: How many of them a cleaned copy no longer has.
        shown: The findings kept: at most `limit` of each rule, all of them without a limit.
    """

    def __init__(self, limit: int | None) -> None:
        self.counts, self.fixed = Counter[str](), Counter[str]()
        self.shown: list[Finding] = []
        self._limit = limit

    def add(self, rule: str, where: str, message: str, *, fixed: bool = False) -> None:
        """Record one finding; `fixed`: a cleaned copy does not have it."""
        self.counts[rule] += 1
        self.fixed[rule] += fixed
        if self._limit is None or self.counts[rule] <= self._limit:
            self.shown.append(Finding(rule, where, message))

    def left(self, level: Level, *, cleaned: bool) -> int:
        """How many findings of a level there are; in the cleaned copy when that is what counts."""
        found = self.counts - self.fixed if cleaned else self.counts
        return sum(count for rule, count in found.items() if RULES[rule] is level)
