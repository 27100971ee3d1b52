"""Puts rows on the side of training or of evaluation; equal content never stands on both."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from llamafarm.api import DataSplitter, Row
from llamafarm.data.seen import Seen
from llamafarm.errors import DataError, PluginError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Sides:
    """The sides of rows.

    Attributes:
        held_out: For each row whether it is held out.
        copies: How many rows have the content of a row before them.
    """

    held_out: Sequence[bool]
    copies: int


def assign(
    rows: Iterable[Row], splitter: DataSplitter[Any], *, key: Callable[[Row], bytes] = attrgetter("digest")
) -> Sides:
    """Ask a splitter for the side of each row.

    The splitter sees each content once; copies follow their first. Rows are streamed: what stays is some 30 bytes each.

    Args:
        rows: All rows, in order.
        splitter: Decides.
        key: Rows of the same key are copies. Its first 8 bytes decide: that two contents of a million are taken for
            copies happens in one of 40 million files, and then they merely stay on one side.

    Raises:
        DataError: If there are fewer than two distinct rows.
        PluginError: If the splitter breaks its contract.
    """
    keys, first, seen = array("Q"), bytearray(), Seen()

    def distinct() -> Iterator[Row]:
        for row in rows:
            number = int.from_bytes(key(row)[:8]) or 1
            new = seen.add(number)
            keys.append(number)
            first.append(new)
            if new:
                yield row

    unseen = distinct()
    sides = splitter.held_out(unseen)
    if next(unseen, None) is not None:
        raise _broken(splitter, "did not look at all rows")
    copies = first.count(False)
    _check(sides, len(first) - copies, copies, splitter)
    return Sides(_with_copies(sides, keys, first), copies)


def goes_by_digest(splitter: DataSplitter[Any]) -> bool:
    """Whether the splitter needs no more of rows than their digests."""
    return type(splitter).held_out_by_digest is not DataSplitter.held_out_by_digest


def assign_digests(digests: NDArray[np.uint64], splitter: DataSplitter[Any]) -> tuple[NDArray[np.bool_], int]:
    """The same as `assign` for a splitter that goes by digest, at some 30 bytes a row.

    Args:
        digests: Shape (rows, 2): both halves of each row's digest; rows of the same first half are copies.
        splitter: Decides.

    Returns:
        For each row whether it is held out, and how many rows have the content of a row before them.

    Raises:
        DataError: If there are fewer than two distinct rows.
        PluginError: If the splitter breaks its contract.
    """
    import numpy as np

    ordered = np.sort(digests[:, 0])
    copies = int((ordered[1:] == ordered[:-1]).sum())
    if not copies:
        sides = splitter.held_out_by_digest(digests)
        _check(sides, len(digests), 0, splitter)
        return sides, 0
    contents, first, content_of = np.unique(digests[:, 0], return_index=True, return_inverse=True)
    in_order = np.argsort(first)
    answers = splitter.held_out_by_digest(digests[first[in_order]])
    _check(answers, len(contents), copies, splitter)
    side_of = np.empty(len(contents), np.bool_)
    side_of[in_order] = answers
    return side_of[content_of], copies


def _with_copies(sides: Sequence[bool], keys: Sequence[int], first: Sequence[int]) -> Sequence[bool]:
    """Give each copy the side of its first."""
    copied = {key for key, new in zip(keys, first, strict=True) if not new}
    if not copied:
        return sides
    answers, known, result = iter(sides), dict[int, bool](), []
    for key, new in zip(keys, first, strict=True):
        side = next(answers) if new else known[key]
        if key in copied:
            known[key] = side
        result.append(side)
    return result


def _check(sides: Sequence[bool] | NDArray[np.bool_], distinct: int, copies: int, splitter: DataSplitter[Any]) -> None:
    if distinct < 2:
        message = f"{distinct + copies} rows, {distinct} of them distinct: too few to train on some and hold out others"
        raise DataError.of("LF-DATA-020", message, hint="give more rows, or hold out a file (dataset.eval_path)")
    if len(sides) != distinct:
        raise _broken(splitter, f"answered for {len(sides)} of {distinct} rows")
    held_out = sum(map(bool, sides)) if isinstance(sides, Sequence) else int(sides.sum())
    if held_out in (0, distinct):
        raise _broken(splitter, f"held out {held_out} of {distinct} rows: one side is empty")


def _broken(splitter: DataSplitter[Any], what: str) -> PluginError:
    error = PluginError.of("LF-PLUGIN-020", f"data splitter {splitter.name!r} {what}", hint="this is a defect of it")
    assert isinstance(error, PluginError)
    return error
