"""Reads rows: a file with one JSON object a line, or a JSON array of objects, in UTF-8."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llamafarm.api import RowRef
from llamafarm.data.compressed import opened
from llamafarm.data.lines import BOM
from llamafarm.data.problems import ProblemLog
from llamafarm.data.strict import Fault, as_row, decode, decode_row
from llamafarm.errors import DataError, DiskError, LlamaFarmError, Problem, nearest

SPACE = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in the file.

    Attributes:
        line: 1-based.
        raw: The bytes of the object, without space or line end around them; it may span lines in an array.
        fields: The parsed object.
    """

    line: int
    raw: bytes
    fields: dict[str, Any]


def read_rows(path: str | Path) -> Iterator[tuple[RowRef, dict[str, Any]]]:
    """Yield the rows of a file, one by one.

    Raises:
        DataError: After the last good row, with every problem found (the first 20 in full), or at once when there is
            no such file, or no row in it.
        DiskError: If the file cannot be read.
    """
    log = ProblemLog()
    for row in read_raw(path, log):
        yield RowRef(str(path), row.line), row.fields
    log.check()


def read_raw(path: str | Path, log: ProblemLog) -> Iterator[RawRow]:
    """Yield the good rows of a file; problems go to `log`.

    JSON lines are streamed; an array is read as a whole. Blank lines are no rows, and every line end counts (LF,
    CRLF, CR).

    Raises:
        DataError: If there is no such file, or nothing in it.
        DiskError: If the file cannot be read.
    """
    problems, found = len(log), False
    for row in _read(Path(path), log):
        found = True
        yield row
    if not found and len(log) == problems:
        raise no_rows(path)


def no_rows(path: str | Path) -> LlamaFarmError:
    """What to tell when a file holds nothing."""
    return DataError.of("LF-DATA-003", "no rows", where=str(path), hint="write one JSON object a line")


def _read(path: Path, log: ProblemLog) -> Iterator[RawRow]:
    with opened_rows(path) as (stream, array):
        if array:
            yield from read_array(path, stream.read(), log)
        elif not refuse_utf16(path, stream, log):
            yield from rows_of_lines(path, lines(stream), log)


@contextmanager
def opened_rows(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """The open file, and whether it is one JSON array.

    Raises:
        DataError: If there is no such file, or what is packed in it is damaged.
        DiskError: If the file cannot be read.
    """
    try:
        with opened(path) as stream:
            yield stream, peek(stream).removeprefix(BOM).lstrip(SPACE).startswith(b"[")
    except OSError as error:
        raise unreadable(path, error) from None


def peek(stream: BinaryIO) -> bytes:
    """The first bytes, which stay to be read."""
    head: bytes = stream.peek(4096)  # type: ignore[attr-defined]  # every stream of `opened` is buffered
    return head


def refuse_utf16(path: Path, stream: BinaryIO, log: ProblemLog) -> bool:
    """Whether the stream begins with the byte order mark of UTF-16; then `log` says so."""
    found = peek(stream)[:2] in (b"\xff\xfe", b"\xfe\xff")
    if found:
        log.add(Problem("LF-DATA-005", "UTF-16, not UTF-8", f"{path}:1", "save the file as UTF-8"))
    return found


def rows_of_lines(path: Path, numbered: Iterable[tuple[int, bytes]], log: ProblemLog) -> Iterator[RawRow]:
    """The good rows of numbered lines; problems go to `log`. It stops where an object goes over several lines."""
    for number, line in numbered:
        raw = line.strip(SPACE)
        if not raw:
            continue
        try:
            fields = decode_row(raw)
        except Fault as fault:
            if raw == b"{":  # an object printed over several lines: each of them would be a problem of its own
                hint = "write each object on one line, or all of them in an array"
                log.add(Problem("LF-DATA-004", "an object goes over several lines", f"{path}:{number}", hint))
                return
            log.add(fault.at(f"{path}:{number}"))
            continue
        yield RawRow(number, raw, fields)


def lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines of a stream with their numbers, without their ends and without a byte order mark."""
    number = 0
    for chunk in stream:
        for line in chunk.splitlines():
            number += 1
            yield number, line.removeprefix(BOM) if number == 1 else line


def read_array(path: Path, content: bytes, log: ProblemLog) -> Iterator[RawRow]:
    """The good rows of a JSON array; problems go to `log`."""
    try:
        text = content.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        log.add(Problem("LF-DATA-005", f"not UTF-8: byte 0x{content[error.start]:02x}", f"{path}:{line}"))
        return
    try:
        yield from _elements(path, text, log)
    except Fault as fault:
        position = max(fault.column - 1, 0)
        line = text.count("\n", 0, position) + 1
        fault.column = position - text.rfind("\n", 0, position) if fault.column else 0
        log.add(fault.at(f"{path}:{line}"))


def _elements(path: Path, text: str, log: ProblemLog) -> Iterator[RawRow]:
    position = _skip(text, _skip(text, 0) + 1)
    line, counted = 1, 0
    more = not text.startswith("]", position)
    while more:
        line, counted = line + text.count("\n", counted, position), position
        value, end = decode(text, position)
        raw = text[position:end].encode(errors="surrogatepass")
        try:
            yield RawRow(line, raw, as_row(value, raw))
        except Fault as fault:
            log.add(fault.at(f"{path}:{line}"))
        position = _skip(text, end)
        more = text.startswith(",", position)
        if more:
            position = _skip(text, position + 1)
        elif not text.startswith("]", position):
            raise Fault("LF-DATA-004", "invalid JSON: expected ',' or ']'", column=position + 1)
    if (position := _skip(text, position + 1)) < len(text):
        message = "the file begins with a JSON array and goes on after its end"
        raise Fault("LF-DATA-004", message, column=position + 1, hint="write one object a line, or one array alone")


def _skip(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\r", "\n"):
        position += 1
    return position


def unreadable(path: Path, error: OSError) -> LlamaFarmError:
    """What to tell when a file or folder cannot be opened."""
    where = str(path)
    if isinstance(error, FileNotFoundError):
        folder = path.parent
        names = [entry.name for entry in folder.iterdir() if entry.is_file()] if folder.is_dir() else []
        hint = nearest(path.name, names) if folder.is_dir() else f"there is no folder {str(folder)!r} either"
        if not hint and not path.is_absolute():
            hint = f"it is looked for in the working folder, {Path.cwd()}"
        return DataError.of("LF-DATA-001", "no such file", where=where, hint=hint)
    if isinstance(error, IsADirectoryError):
        files = sorted(entry.name for entry in path.iterdir() if entry.suffix in {".jsonl", ".json"})
        hint = f"name a file in it, such as {files[0]!r}" if files else ""
        return DataError.of("LF-DATA-002", "a folder, where a file of rows was expected", where=where, hint=hint)
    return DiskError.of("LF-DISK-002", f"cannot be read: {error.strerror}", where=where)
