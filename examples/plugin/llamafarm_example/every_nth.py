"""Hold out each n-th row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import Field

from llamafarm.api import Config, DataSplitter, Row


class EveryNthConfig(Config):
    """Configuration of `every-nth`."""

    n: int = Field(10, ge=2, description="Hold out rows n, 2n, 3n … of the file.")


class EveryNth(DataSplitter[EveryNthConfig]):
    """Holds out each n-th row in file order: even coverage of a file that is ordered by time or topic."""

    name = "every-nth"

    def held_out(self, rows: Iterable[Row]) -> Sequence[bool]:
        """Rows n, 2n, …; of fewer than n rows the last one."""
        count = sum(1 for _ in rows)
        if 2 <= count < self.config.n:
            return [index == count - 1 for index in range(count)]
        return [index % self.config.n == self.config.n - 1 for index in range(count)]
