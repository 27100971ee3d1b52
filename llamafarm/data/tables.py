"""Reads rows of other kinds of files than JSON: tables (csv, parquet) and plain text; all are streamed."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from llamafarm.api import RowRef
from llamafarm.data.compressed import opened
from llamafarm.data.extra import require
from llamafarm.data.problems import ProblemLog
from llamafarm.data.rows import lines, refuse_utf16, unreadable
from llamafarm.errors import DataError, Problem

Found = Iterator[tuple[RowRef, dict[str, Any]]]
RowReader = Callable[[Path, ProblemLog], Found]


def read_text(path: Path, log: ProblemLog, text_field: str = "text") -> Found:
    """One row per line that is not blank, without the space around it.

    Raises:
        DiskError: If the file cannot be read.
    """
    for number, line in _decoded(path, log):
        if text := line.strip():
            yield RowRef(str(path), number), {text_field: text}


def read_csv(path: Path, log: ProblemLog) -> Found:
    """The rows below a header; every cell is text. A cell may be quoted, and then go over lines.

    Cells are parted by tabs in a `.tsv`, by semicolons if the header has those and no comma, else by commas.

    Raises:
        DiskError: If the file cannot be read.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses a cell of 128 KiB: a long document
    numbered = _decoded(path, log, ends=True)
    first = next(numbered, None)
    if first is None:
        return
    tabs = ".tsv" in (suffix.lower() for suffix in path.suffixes)
    delimiter = "\t" if tabs else ";" if ";" in first[1] and "," not in first[1] else ","
    table = csv.reader((line for _, line in chain([first], numbered)), delimiter=delimiter, strict=True)
    try:
        yield from _below_header(path, table, log)
    except csv.Error as error:
        log.add(Problem("LF-DATA-041", f"not valid csv: {error}", f"{path}:{table.line_num}", "quote it as RFC 4180"))


def _below_header(path: Path, table: Any, log: ProblemLog) -> Iterator[tuple[RowRef, dict[str, Any]]]:
    header = next(table)
    if twice := _twice(header):
        log.add(Problem("LF-DATA-042", f"two columns have the name {twice!r}", f"{path}:1", "rename one of them"))
        return
    line = table.line_num + 1
    for cells in table:
        where, line = line, table.line_num + 1
        if not cells:
            continue
        if len(cells) != len(header):
            message = f"{len(cells)} cells, where the header has {len(header)} columns"
            log.add(Problem("LF-DATA-041", message, f"{path}:{where}", "quote cells that hold a separator"))
            continue
        yield RowRef(str(path), where), dict(zip(header, cells, strict=True))


def _decoded(path: Path, log: ProblemLog, *, ends: bool = False) -> Iterator[tuple[int, str]]:
    """The lines as text; what is not UTF-8 goes to `log`."""
    try:
        with opened(path) as stream:
            if refuse_utf16(path, stream, log):
                return
            for number, line in _with_ends(stream) if ends else lines(stream):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    message = f"not UTF-8: byte 0x{line[error.start]:02x}"
                    log.add(Problem("LF-DATA-005", message, f"{path}:{number}", "save the file as UTF-8"))
                    text = line.decode(errors="replace")  # only to go on: the row is not used, for the log is not empty
                yield number, text
    except OSError as error:
        raise unreadable(path, error) from None


def _with_ends(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    return enumerate(stream, 1)


def read_parquet(path: Path, log: ProblemLog) -> Found:
    """The rows with their numbers; a value that is null is absent, because tables cannot leave out a field.

    Raises:
        DataError: If it is no parquet file.
        DiskError: If the file cannot be read.
        PluginError: If pyarrow is not installed.
    """
    arrow = require("pyarrow", path)
    parquet = require("pyarrow.parquet", path)

    try:
        with parquet.ParquetFile(path) as file:
            if twice := _twice(file.schema_arrow.names):
                log.add(Problem("LF-DATA-042", f"two columns have the name {twice!r}", str(path), "rename one of them"))
                return
            number = 0
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield RowRef(str(path), number), without_nulls(row)
    except arrow.ArrowException as error:
        message = f"no parquet file: {str(error).splitlines()[0]}"
        raise DataError.of("LF-DATA-043", message, where=str(path), hint="write it again") from None
    except OSError as error:
        if error.errno is None:  # arrow's own word for damaged pages
            message = f"no parquet file: {(str(error) or 'damaged').splitlines()[0]}"
            raise DataError.of("LF-DATA-043", message, where=str(path), hint="write it again") from None
        raise unreadable(path, error) from None


def _twice(names: list[str]) -> str | None:
    return next((name for number, name in enumerate(names) if name in names[:number]), None)


def without_nulls(value: Any) -> Any:
    """The value without the nulls in its objects, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


TEXTS = (".txt", ".text")
READERS: Mapping[str, RowReader] = MappingProxyType(
    {
        ".csv": read_csv,
        ".tsv": read_csv,
        ".parquet": read_parquet,
    }
)
