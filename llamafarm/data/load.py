"""Loads the rows of one source as examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from llamafarm.api import DatasetConfig, Example, GenerateDataConfig, Row, RowRef
from llamafarm.data.digests import example_digest, row_digest
from llamafarm.data.formats import detect_format, to_example, unused_columns
from llamafarm.data.problems import ProblemLog
from llamafarm.data.rows import read_raw
from llamafarm.errors import DataError, Problem

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
    name: str, rows: Rows, dataset: DatasetConfig, into: Loaded, *, log: ProblemLog, notice: Notice
) -> Iterator[Row]:
    """Append each row to `into` as an example and yield it as a splitter sees it; problems go to `log`.

    The first row tells the form of all, unless the dataset names it.
    """
    form: str = "" if dataset.format == "auto" else dataset.format
    unused: dict[str, None] = {}
    for ref, fields in rows:
        try:
            if not form:
                form, reason = detect_format(fields, dataset.text_field)
                notice(f"{name}: rows are {form} ({reason})")
            example = to_example(fields, ref, form, dataset.text_field)
        except DataError as error:
            for problem in error.problems:
                log.add(problem if problem.where else Problem(problem.id, problem.message, str(ref), problem.hint))
            if not form:
                return  # without a form, every row would be one more problem of the same kind
            continue
        unused.update(dict.fromkeys(unused_columns(fields, form, dataset.text_field)))
        into.examples.append(example)
        into.contents.append(example_digest(example))
        yield Row(len(into.examples) - 1, row_digest(fields), fields)
    if unused:
        notice(f"{name}: not used: column{'s' * (len(unused) > 1)} {', '.join(map(repr, unused))}")
