"""`hash`: the content of a row decides its side, whatever stands around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from llamafarm.api import DataSplitter, Row
from llamafarm_splitters.ranks import numbers
from llamafarm_splitters.share import ShareConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class HashConfig(ShareConfig):
    """Options of the `hash` splitter. It needs no seed, and the share is met on average."""


class Hash(DataSplitter[HashConfig]):
    """Holds a row out if its digest is below a threshold.

    Rows that are added, removed or moved change nothing for the others. One exception: if all rows fell on one side,
    the one nearest to the threshold is moved (the smallest digest is held out, or the largest is trained on).
    """

    name = "hash"

    def held_out(self, rows: Iterable[Row]) -> Sequence[bool]:
        """Choose by digest."""
        sides: list[bool] = self.held_out_by_digest(numbers(rows)).tolist()
        return sides

    def held_out_by_digest(self, digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Compare each digest with the threshold."""
        import numpy as np

        share, places = self.config.share, digests[:, 0]
        sides = places < np.uint64((share.numerator << 64) // share.denominator)
        if len(sides) > 1 and not sides.any():
            sides[places.argmin()] = True
        elif len(sides) > 1 and sides.all():
            sides[places.argmax()] = False
        return sides
