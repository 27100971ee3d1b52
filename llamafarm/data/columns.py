"""Gives columns the names that we know them by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llamafarm.api import RowRef
from llamafarm.data.sources import Rows
from llamafarm.errors import DataError, Problem, nearest


class Renamed:
    """Rows with renamed columns; a column of ours that the data has besides gives way.

    Args:
        name: The source, for messages.
        rows: Rows as they stand in the data.
        columns: Our name → the name in the data.
    """

    def __init__(self, name: str, rows: Rows, columns: Mapping[Any, str]) -> None:
        self._name, self._rows, self._columns = name, rows, dict(columns)
        self._missing = dict(self._columns)
        self._seen: dict[str, None] = {}

    def __iter__(self) -> Iterator[tuple[RowRef, dict[str, Any]]]:
        if not self._columns:
            yield from self._rows
            return
        taken = set(self._columns.values())
        for ref, fields in self._rows:
            if self._missing:
                self._missing = {ours: theirs for ours, theirs in self._missing.items() if theirs not in fields}
                self._seen.update(dict.fromkeys(fields))
            mapped = {ours: fields[theirs] for ours, theirs in self._columns.items() if theirs in fields}
            rest = {name: value for name, value in fields.items() if name not in taken and name not in mapped}
            yield ref, mapped | rest

    def check(self) -> None:
        """To be called after the last row.

        Raises:
            DataError: For each column that no row has; it tells which there are.
        """
        there = ", ".join(map(repr, self._seen)) or "none"
        if self._missing:
            raise DataError(
                Problem(
                    "LF-DATA-049",
                    f"dataset.columns.{ours}: no row has a column {theirs!r}; there: {there}",
                    self._name,
                    nearest(theirs, self._seen),
                )
                for ours, theirs in self._missing.items()
            )
