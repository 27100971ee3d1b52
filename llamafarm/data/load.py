"""Loads the rows of one source as examples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

from llamafarm.api import GenerateDataConfig, Row, RowRef, RowsConfig
from llamafarm.data.columns import Renamed
from llamafarm.data.digests import example_digest, row_digest
from llamafarm.data.filters import Filters
from llamafarm.data.formats import detect_format, to_example, unused_columns
from llamafarm.data.problems import SHOWN, ProblemLog
from llamafarm.data.registered_rows import translated
from llamafarm.data.registry import FILE, registered
from llamafarm.data.sources import Notice, Rows, Source, parse, read, sample
from llamafarm.data.stored import Examples
from llamafarm.data.tasks import of_task
from llamafarm.errors import DataError


@dataclass(slots=True)
class Loaded:
    """Examples in the order of their rows, and the digest of what each holds: equal for copies."""

    examples: Examples = field(default_factory=Examples)
    contents: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Opened:
    """The rows of one source, and how many of them a sample leaves out."""

    name: str
    rows: Rows
    left_out: int = 0


def open_rows(config: RowsConfig, log: ProblemLog, notice: Notice, *, seed: int, limit: int | None = None) -> Opened:
    """The good rows of what a configuration names, at most `limit`; problems go to `log`.

    Raises:
        DataError: If it names nothing that can be read.
        DiskError: If a file cannot be read.
        NetworkError: If the hub is needed and cannot be reached.
        PluginError: If a library that reads it is not installed.
    """
    if config.path is None:
        if config.generate is None:
            hint = "name a file by dataset.path (--dataset), or what to generate by dataset.generate"
            raise DataError.of("LF-DATA-024", "no dataset given", hint=hint)
        return Opened(config.generate.name, generated_rows(config.generate, limit))
    if config.generate is not None:
        notice(f"dataset.generate is not used: dataset.path names {config.path}")
    source, subset = parse(config.path), config.subset
    if entry := registered(config, source.path):
        notice(f"{entry.name}: {entry.path}, as {FILE} says")
        named = parse(entry.path)
        source, subset = Source(named.path, source.sample or named.sample), subset or entry.subset
    rows = read(source.path, log, notice, text_field=config.text_field, subset=subset)
    if entry:
        rows = translated(entry, rows, log)
    if source.sample is None:
        return Opened(source.path, islice(rows, limit))
    chosen, total = sample(rows, source.sample, seed)
    notice(f"{source.path}: {len(chosen)} of {total} rows, by chance (dataset.sample_seed {seed})")
    chosen = chosen[:limit]
    return Opened(source.path, chosen, total - len(chosen))


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
    dataset: RowsConfig,
    into: Loaded,
    *,
    log: ProblemLog,
    notice: Notice,
    difficulty: str | None = None,
    task: str | None = None,
    filters: Filters | None = None,
) -> Iterator[Row]:
    """Append each row to `into` as an example and yield it as a splitter sees it; problems go to `log`.

    With `difficulty`, that column's number goes into the example. What `filters` leave out stands in its counts alone.

    Unless the dataset names the form of the rows, the first row that has one tells it for all.
    """
    form: str = dataset.format
    renamed = Renamed(name, rows, dataset.columns)
    rows = renamed
    if form == "auto":
        form, rows = _form(name, rows, dataset, log, notice)
    unused: dict[str, None] = {}
    for ref, fields in rows:
        try:
            example = to_example(fields, ref, form, dataset.text_field)
            if difficulty is not None:
                example = replace(example, difficulty=_number(fields, difficulty, ref))
            content = example_digest(example)
            if filters and filters.leaves_out(example, content):
                continue
        except DataError as error:
            if not (filters and filters.forgives(error)):
                for problem in error.problems:
                    log.add(problem)
            continue
        if task is not None:
            example = of_task(example, task)
            content = example_digest(example)
        unused.update(dict.fromkeys(unused_columns(fields, form, dataset.text_field)))
        unused.pop(difficulty or "", None)
        into.examples.append(example)
        into.contents.append(content)
        yield Row(len(into.examples) - 1, row_digest(fields), fields)
    renamed.check()
    if unused:
        notice(f"{name}: not used: column{'s' * (len(unused) > 1)} {', '.join(map(repr, unused))}")


def _number(fields: Mapping[str, Any], column: str, ref: RowRef) -> float:
    value = fields.get(column)
    number = value
    if isinstance(value, str):  # tables of text have no other numbers
        try:
            number = float(value)
        except ValueError:
            number = None
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        message = f"column {column!r} is {value!r}, and the curriculum goes by its number"
        if column not in fields:
            message = f"no column {column!r}, which the curriculum goes by"
        hint = "training.curriculum goes by words, tokens, or a column of numbers"
        raise DataError.of("LF-DATA-080", message, where=str(ref), hint=hint)
    return float(number)


def _form(name: str, rows: Rows, dataset: RowsConfig, log: ProblemLog, notice: Notice) -> tuple[str, Rows]:
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
