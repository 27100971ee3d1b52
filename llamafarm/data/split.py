"""Puts rows on the side of training or of evaluation; equal content never stands on both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any

from llamafarm.api import DataSplitter, Row
from llamafarm.errors import DataError, PluginError, Problem


def assign(
    rows: Iterable[Row], splitter: DataSplitter[Any], *, key: Callable[[Row], bytes] = attrgetter("digest")
) -> list[bool]:
    """Ask a splitter for the side of each row.

    The splitter sees each content once; copies follow their first.

    Args:
        rows: All rows, in order.
        splitter: Decides.
        key: Rows of the same key are copies.

    Returns:
        For each row whether it is held out.

    Raises:
        DataError: If there are fewer than two distinct rows.
        PluginError: If the splitter breaks its contract.
    """
    first: dict[bytes, int] = {}
    groups: list[int] = []

    def distinct() -> Iterator[Row]:
        for row in rows:
            known = len(first)
            groups.append(first.setdefault(key(row), known))
            if len(first) > known:
                yield row

    unseen = distinct()
    sides = splitter.held_out(unseen)
    if next(unseen, None) is not None:
        raise _broken(splitter, "did not look at all rows")
    _check(sides, len(first), len(groups), splitter)
    return [bool(sides[group]) for group in groups]


def _check(sides: Sequence[bool], distinct: int, total: int, splitter: DataSplitter[Any]) -> None:
    if distinct < 2:
        message = f"{total} rows, {distinct} of them distinct: too few for a side to train on and a side to hold out"
        raise DataError.of(
            "LF-DATA-020", message, hint="give more rows, or a file of held-out rows (dataset.eval_path)"
        )
    if len(sides) != distinct:
        raise _broken(splitter, f"answered for {len(sides)} of {distinct} rows")
    held_out = sum(map(bool, sides))
    if held_out in (0, distinct):
        raise _broken(splitter, f"held out {held_out} of {distinct} rows: one side is empty")


def _broken(splitter: DataSplitter[Any], what: str) -> PluginError:
    return PluginError([Problem("LF-PLUGIN-020", f"data splitter {splitter.name!r} {what}")])
