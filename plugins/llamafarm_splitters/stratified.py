"""`stratified`: every value of a column is held out in the same share."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from llamafarm.api import DataSplitter, Row
from llamafarm_splitters.column import ByConfig, by_column
from llamafarm_splitters.ranks import ranker


class StratifiedConfig(ByConfig):
    """Options of the `stratified` splitter."""


class Stratified(DataSplitter[StratifiedConfig]):
    """Holds out exactly the share of distinct rows, spread over the values of a column in proportion.

    Each value gets its proportional number rounded down, and those with the largest remainders one row more, until the
    total is exact. The same seed chooses the same rows, in whatever order they stand.
    """

    name = "stratified"

    def held_out(self, rows: Iterable[Row]) -> Sequence[bool]:
        """Rank the rows of each value by a keyed digest and hold out the first ones.

        Raises:
            DataError: If a row has no such column, or `eval_rows` leaves nothing to train on.
        """
        keyed = by_column(rows, self.config.by)
        sides = [False] * len(keyed.numbers)
        if len(sides) < 2:
            return sides
        left = apportion(Counter(keyed.numbers), self.config.number(len(sides)), keyed.values)
        rank = ranker(self.config.seed)
        ranks = array("Q", (rank(digest.to_bytes(8)) for digest in keyed.digests))
        for index in sorted(range(len(sides)), key=ranks.__getitem__):
            if left[keyed.numbers[index]]:
                left[keyed.numbers[index]] -= 1
                sides[index] = True
        return sides


def apportion(sizes: Mapping[int, int], total: int, names: Sequence[bytes]) -> list[int]:
    """Spread `total` over groups in proportion to their sizes, by largest remainder, in integers.

    Args:
        sizes: Rows by group.
        total: At most all rows.
        names: Of the groups, by number.

    Returns:
        A number for each group, at most its size; their sum is `total`. Ties go to the larger group, then by name.
    """
    everything = sum(sizes.values())
    result = [sizes[group] * total // everything for group in range(len(names))]
    order = sorted(sizes, key=lambda group: (-(sizes[group] * total % everything), -sizes[group], names[group]))
    for group in order[: total - sum(result)]:
        result[group] += 1
    return result
