"""`sequential`: the last rows are held out, for data that is ordered in time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from llamafarm.api import DataSplitter, Row
from llamafarm_splitters.ranks import numbers
from llamafarm_splitters.share import CountConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class SequentialConfig(CountConfig):
    """Options of the `sequential` splitter."""


class Sequential(DataSplitter[SequentialConfig]):
    """Holds out exactly the share of distinct rows, rounded half up, from the end; their order is kept."""

    name = "sequential"

    def held_out(self, rows: Iterable[Row]) -> Sequence[bool]:
        """Count the rows and hold out the last ones.

        Raises:
            DataError: If `eval_rows` leaves nothing to train on.
        """
        sides: list[bool] = self.held_out_by_digest(numbers(rows)).tolist()
        return sides

    def held_out_by_digest(self, digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Hold out the last ones of so many.

        Raises:
            DataError: If `eval_rows` leaves nothing to train on.
        """
        import numpy as np

        total = len(digests)
        first = total - self.config.number(total) if total > 1 else total
        return np.arange(total) >= first
