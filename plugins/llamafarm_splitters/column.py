"""The value by which rows belong together."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from llamafarm.api import Row
from llamafarm.data.problems import ProblemLog
from llamafarm.errors import Problem, nearest
from llamafarm_splitters.share import CountConfig


class ByConfig(CountConfig):
    """The share, and the column that tells which rows belong together."""

    by: str = Field(min_length=1, description="Column that decides; a dotted path leads into objects: `meta.source`.")
    seed: int = Field(42, strict=True, ge=0, description="Another seed, another choice.")


@dataclass(frozen=True, slots=True)
class Keyed:
    """Rows by their value in the column.

    Attributes:
        numbers: For each row the number of its value, counted from 0 as they appear.
        values: The values as canonical JSON, by number.
        digests: The first 8 bytes of each row's digest, as a number.
    """

    numbers: array[int]
    values: tuple[bytes, ...]
    digests: array[int]


def by_column(rows: Iterable[Row], path: str) -> Keyed:
    """Read the column of all rows.

    Raises:
        DataError: For every row that has nothing there.
    """
    log, known = ProblemLog(), dict[bytes, int]()
    numbers, digests = array("Q"), array("Q")
    for row in rows:
        value = _value(row.fields, path)
        if value is None:
            log.add(_missing(row, path))
            continue
        text = json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
        numbers.append(known.setdefault(text, len(known)))
        digests.append(int.from_bytes(row.digest[:8]))
    log.check()
    return Keyed(numbers, tuple(known), digests)


def _value(fields: Mapping[str, Any], path: str) -> Any:
    """What stands at `path`: a column of that very name, or the way into objects."""
    if path in fields:
        return fields[path]
    found: Any = fields
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _missing(row: Row, path: str) -> Problem:
    columns = ", ".join(map(repr, row.fields)) or "none"
    hint = nearest(path, row.fields) or f"columns there: {columns}"
    return Problem("LF-DATA-060", f"row {row.index + 1} has no {path!r} to split by", hint=hint)
