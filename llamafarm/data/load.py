"""Loads the rows of one source as examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

from llamafarm.api import DatasetConfig, Example, GenerateDataConfig, Row, RowRef
from llamafarm.data.digests import example_digest, row_digest
from llamafarm.data.formats import detect_format, to_example, unused_columns
from llamafarm.data.problems import SHOWN, ProblemLog
from llamafarm.data.rows import read_raw
from llamafarm.errors import DataError

Rows = Iterable[tuple[RowRef, dict[str, Any]]]
Notice = Callable[[str], None]


@dataclass(slots=True)
class Loaded:
    """Examples in the order of their rows, and the digest of what each holds: equal for copies."""

    examples: list[Example] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)


def file_rows(path: str, log: ProblemLog, limit: int | None = None) -> Rows:
    """The good rows of a file, at most `limit`; problems go to `log`."""
    return ((RowRef(path, row.line), row.fields) for row in islice(read_raw(path, log), limit))


def generated_rows(config: GenerateDataConfig, limit: int | None = None) -> Rows:
    """Rows made anew from their seed."""
    from llamafarm.datagen import generate

    rows = generate(
        size=config.size,
        languages=config.languages,
        format=config.format,
        seed=config.seed,
        system=config.system,
    )
    return ((RowRef(config.name, number), row) for number, row in enumerate(islice(rows, limit), 1))


def load(
    name: str,
    rows: Rows,
    dataset: DatasetConfig,
    into: Loaded,
    *,
    log: ProblemLog,
    notice: Notice,
    difficulty: str | None = None,
) -> Iterator[Row]:
    """Append each row to `into` as an example and yield it as a splitter sees it; problems go to `log`.

    With `difficulty`, that column's number goes into the example.

    Unless the dataset names the form of the rows, the first row that has one tells it for all.
    """
    form: str = dataset.format
    if form == "auto":
        form, rows = _form(name, rows, dataset, log, notice)
    unused: dict[str, None] = {}
    for ref, fields in rows:
        try:
            example = to_example(fields, ref, form, dataset.text_field)
            if difficulty is not None:
                example = replace(example, difficulty=_number(fields, difficulty, ref))
        except DataError as error:
            for problem in error.problems:
                log.add(problem)
            continue
        unused.update(dict.fromkeys(unused_columns(fields, form, dataset.text_field)))
        unused.pop(difficulty or "", None)
        into.examples.append(example)
        into.contents.append(example_digest(example))
        yield Row(len(into.examples) - 1, row_digest(fields), fields)
    if unused:
        notice(f"{name}: not used: column{'s' * (len(unused) > 1)} {', '.join(map(repr, unused))}")


def _number(fields: Mapping[str, Any], column: str, ref: RowRef) -> float:
    value = fields.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        message = f"column {column!r} is {value!r}, and the curriculum goes by its number"
        if column not in fields:
            message = f"no column {column!r}, which the curriculum goes by"
        hint = "training.curriculum goes by words, tokens, or a column of numbers"
        raise DataError.of("LF-DATA-080", message, where=str(ref), hint=hint)
    return float(value)


def _form(name: str, rows: Rows, dataset: DatasetConfig, log: ProblemLog, notice: Notice) -> tuple[str, Rows]:
    """The form of the rows, and all of them again; no rows if the first ones have none."""
    remaining = iter(rows)
    first: list[tuple[RowRef, dict[str, Any]]] = []
    errors: list[DataError] = []
    for ref, fields in islice(remaining, SHOWN):
        first.append((ref, fields))
        try:
            form, reason = detect_format(fields, dataset.text_field)
        except DataError as error:
            errors.append(error)
            continue
        notice(f"{name}: rows are {form} ({reason})")
        return form, chain(first, remaining)
    for problem in errors[0].problems if errors else ():
        log.add(replace(problem, where=str(first[0][0])))
    return "", ()
