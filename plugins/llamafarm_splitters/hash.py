"""`hash`: the content of a row decides its side, whatever stands around it."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from llamafarm.api import DataSplitter, Row
from llamafarm_splitters.share import ShareConfig

_BYTES = 8


class HashConfig(ShareConfig):
    """Options of the `hash` splitter. It needs no seed, and the share is met on average."""


class Hash(DataSplitter[HashConfig]):
    """Holds a row out if its digest is below a threshold.

    Rows that are added, removed or moved change nothing for the others. One exception: if all rows fell on one side,
    the one nearest to the threshold is moved (the smallest digest is held out, or the largest is trained on).
    """

    name = "hash"

    def held_out(self, rows: Iterable[Row]) -> Sequence[bool]:
        """Compare each digest with the threshold."""
        places = array("Q", (int.from_bytes(row.digest[:_BYTES]) for row in rows))
        share = self.config.share
        threshold = (share.numerator << 8 * _BYTES) // share.denominator
        sides = [place < threshold for place in places]
        if len(places) > 1 and not any(sides):
            sides[places.index(min(places))] = True
        elif len(places) > 1 and all(sides):
            sides[places.index(max(places))] = False
        return sides
