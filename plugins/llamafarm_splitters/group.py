"""`group`: rows that belong together stay on one side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from llamafarm.api import DataSplitter, Row
from llamafarm.errors import DataError
from llamafarm_splitters.column import ByConfig, by_column
from llamafarm_splitters.ranks import ranker


class GroupConfig(ByConfig):
    """Options of the `group` splitter."""


class Group(DataSplitter[GroupConfig]):
    """Holds out whole groups: rows with the same value in a column.

    Groups are taken in a seeded order as long as they fit into the share; at last one more, if that brings the total
    nearer to it. The total is as near as that comes: groups are never cut.
    """

    name = "group"

    def held_out(self, rows: Iterable[Row]) -> Sequence[bool]:
        """Choose groups.

        Raises:
            DataError: If a row has no such column, all rows are one group, or `eval_rows` leaves nothing to train on.
        """
        keyed = by_column(rows, self.config.by)
        if len(keyed.numbers) < 2:
            return [False] * len(keyed.numbers)
        if len(keyed.values) == 1:
            message = f"all rows have the same {self.config.by!r}: one group cannot be split"
            raise DataError.of("LF-DATA-061", message, hint="group by another column, or take another splitter")
        rank = ranker(self.config.seed)
        order = sorted(range(len(keyed.values)), key=lambda number: rank(keyed.values[number]))
        chosen = choose(order, Counter(keyed.numbers), self.config.number(len(keyed.numbers)))
        return [number in chosen for number in keyed.numbers]


def choose(order: Sequence[int], sizes: Mapping[int, int], wanted: int) -> frozenset[int]:
    """Groups whose rows come near to `wanted`.

    Args:
        order: At least two groups, in the order in which they are tried.
        sizes: Rows by group.
        wanted: Below the number of all rows.

    Returns:
        At least one group, and not all.
    """
    chosen, held = set[int](), 0
    for group in order:
        if held + sizes[group] <= wanted:
            chosen.add(group)
            held += sizes[group]
    rest = [group for group in order if group not in chosen]
    nearest = min(rest, key=lambda group: abs(held + sizes[group] - wanted))
    nearer = abs(held + sizes[nearest] - wanted) < wanted - held
    if not chosen or (nearer and len(rest) > 1):
        chosen.add(nearest)
    return frozenset(chosen)
