"""What a dataset's path stands for: a file, a folder, a pattern, a dataset of the hub; `#N` takes a sample."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from glob import glob, has_magic
from heapq import nsmallest
from pathlib import Path
from random import Random
from typing import Any

from llamafarm.api import RowRef
from llamafarm.data.compressed import plain_suffix
from llamafarm.data.hub import hub_rows, is_hub_id
from llamafarm.data.problems import ProblemLog
from llamafarm.data.rows import read_raw, unreadable
from llamafarm.data.tables import READERS, TEXTS, RowReader, read_text
from llamafarm.errors import DataError

Rows = Iterable[tuple[RowRef, dict[str, Any]]]
Notice = Callable[[str], None]

_JSON = (".jsonl", ".json", ".ndjson")
_OTHERS = {
    ".zip": "unpack it",
    ".tar": "unpack it",
    ".xz": "unpack it, or pack it by gzip or zstd",
    ".bz2": "unpack it, or pack it by gzip or zstd",
    ".xlsx": "save it as csv (UTF-8)",
    ".xls": "save it as csv (UTF-8)",
    ".ods": "save it as csv (UTF-8)",
    ".arrow": "save it as parquet",
    ".feather": "save it as parquet",
    ".pdf": "save its text as .txt",
    ".docx": "save its text as .txt",
    ".pkl": "save it as jsonl: reading it could run foreign code",
    ".pickle": "save it as jsonl: reading it could run foreign code",
}
_SAMPLE = re.compile(r"(?P<path>.+)#(?P<count>\d+)")


@dataclass(frozen=True, slots=True)
class Source:
    """A path without its sampling suffix, and the rows to take: all if None."""

    path: str
    sample: int | None = None


def parse(path: str) -> Source:
    """Take a sampling suffix (`rows.jsonl#500`) off a path, unless a file has that very name.

    Raises:
        DataError: If no row is asked for.
    """
    match = None if Path(path).exists() else _SAMPLE.fullmatch(path)
    if match is None:
        return Source(path)
    if not int(match["count"]):
        raise DataError.of("LF-DATA-045", "a sample of no rows", where=path, hint="write #N with N from 1")
    return Source(match["path"], int(match["count"]))


def read(path: str, log: ProblemLog, notice: Notice, *, text_field: str = "text", subset: str | None = None) -> Rows:
    """The good rows of everything that a path stands for, in the order of the files' names; problems go to `log`.

    Args:
        path: Without sampling suffix.
        log: Takes what is wrong with rows.
        notice: Takes what is left out of a folder.
        text_field: The column that lines of plain text become.
        subset: The configuration of a hub dataset.

    Raises:
        DataError: If there is no such source, nothing in it, or it is of a kind that cannot be read.
        DiskError: If a file cannot be read.
        NetworkError: If the hub is needed and cannot be reached.
        PluginError: If a library that reads it is not installed.
    """
    if not Path(path).exists() and is_hub_id(path):
        yield from hub_rows(path, subset)
    else:
        yield from _files(files_of(path, notice), log, text_field)


def files_of(path: str, notice: Notice) -> list[Path]:
    """The files that a path stands for: itself, those in a folder, or those that match a pattern.

    Raises:
        DataError: If there are none.
        DiskError: If a folder cannot be read.
    """
    whole = Path(path)
    if whole.is_dir():
        return _in_folder(whole, notice)
    if whole.exists():
        return [whole]
    if has_magic(path):
        return _matching(path)
    raise unreadable(whole, FileNotFoundError())


def reader_of(file: Path, text_field: str = "text") -> RowReader | None:
    """What reads the rows of a file by its suffix; None for JSON, which all other suffixes are taken for.

    Raises:
        DataError: If its kind is known to be none that can be read.
    """
    suffix = plain_suffix(file)
    for packed in (suffix, file.suffix.lower()):
        if packed in _OTHERS:
            message = f"{packed} files cannot be read"
            raise DataError.of("LF-DATA-046", message, where=str(file), hint=_OTHERS[packed])
    return partial(read_text, text_field=text_field) if suffix in TEXTS else READERS.get(suffix)


def _files(files: Iterable[Path], log: ProblemLog, text_field: str) -> Iterator[tuple[RowRef, dict[str, Any]]]:
    for file in files:
        reader = reader_of(file, text_field)
        if reader is None:
            yield from ((RowRef(str(file), row.line), row.fields) for row in read_raw(file, log))
            continue
        problems, found = len(log), False
        for row in reader(file, log):
            found = True
            yield row
        if not found and len(log) == problems:
            raise DataError.of("LF-DATA-003", "no rows", where=str(file), hint="there is nothing to learn in it")


def _in_folder(folder: Path, notice: Notice) -> list[Path]:
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable(folder, error) from None
    files = [entry for entry in entries if entry.is_file() and plain_suffix(entry) in (*_JSON, *READERS, *TEXTS)]
    left_out = [entry.name for entry in entries if entry not in files]
    if not files:
        hint = f"it holds {', '.join(left_out[:8])}" if left_out else "it is empty"
        raise DataError.of("LF-DATA-002", "a folder without any file of rows", where=str(folder), hint=hint)
    notice(f"{folder}: {len(files)} file{'s' * (len(files) > 1)}, {files[0].name} first")
    if left_out:
        more = f" and {len(left_out) - 8} more" if len(left_out) > 8 else ""
        notice(f"{folder}: not read: {', '.join(left_out[:8])}{more}")
    return files


def _matching(pattern: str) -> list[Path]:
    files = sorted(path for path in map(Path, glob(pattern, recursive=True)) if path.is_file())  # noqa: PTH207  # absolute patterns
    if not files:
        raise DataError.of("LF-DATA-001", "no file matches the pattern", where=pattern)
    return files


def sample(rows: Rows, count: int, seed: int) -> tuple[list[tuple[RowRef, dict[str, Any]]], int]:
    """Choose rows by chance, in their order; a greater sample holds the smaller ones.

    Returns:
        At most `count` rows, and the number of all.
    """
    chance, total = Random(seed), 0  # noqa: S311  # no secret

    def drawn() -> Iterator[tuple[float, int, tuple[RowRef, dict[str, Any]]]]:
        nonlocal total
        for row in rows:
            total += 1
            yield chance.random(), total, row

    chosen = sorted(nsmallest(count, drawn()), key=lambda item: item[1])
    return [row for _, _, row in chosen], total
