"""Files that are read twice: once to digest their rows, once to write each row to the output that was chosen for it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, time
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llamafarm.api import RowRef
from llamafarm.data.blocks import Block, read_blocks, read_digests
from llamafarm.data.digests import row_digest
from llamafarm.data.lines import cut, lines_of
from llamafarm.data.problems import ProblemLog
from llamafarm.data.rows import SPACE, RawRow, no_rows, opened_rows, read_array, read_raw
from llamafarm.data.sources import reader_of
from llamafarm.data.tables import Found
from llamafarm.errors import Problem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PIECE = 1 << 20
_ROWS = 1000
_SPELT = (date, time)


@contextmanager
def opened_input(path: Path, text_field: str = "text") -> Iterator[Input]:
    """The rows of a file of any kind.

    Raises:
        DataError: If there is no such file, or it is of a kind that cannot be read.
        DiskError: If it cannot be read.
    """
    if reader := reader_of(path, text_field):
        yield Records(lambda log: reader(path, log))
        return
    with opened_rows(path) as (stream, array):
        if array:
            yield Elements(path, stream)
        else:
            yield JsonLines(path, stream)


def raw_rows(path: Path, log: ProblemLog) -> Iterator[RawRow]:
    """The good rows of a file of any kind, as they stand there, or as JSON where it is none; problems go to `log`.

    Raises:
        DataError: If there is no such file, nothing in it, or it is of a kind that cannot be read.
        DiskError: If it cannot be read.
    """
    reader = reader_of(path)
    if reader is None:
        yield from read_raw(path, log)
        return
    problems, found = len(log), False
    for ref, fields in reader(path, log):
        found = True
        try:
            yield RawRow(ref.line, as_line(fields).rstrip(), fields)
        except (TypeError, ValueError) as error:
            log.add(_unspeakable(ref, error))
    if not found and len(log) == problems:
        raise no_rows(path)


class Part(NamedTuple):
    """Rows for one output, as lines, and how many they are."""

    side: int
    rows: bytes
    number: int


class Input(ABC):
    """The rows of one open file; each of the methods reads it, so only one of them may be called."""

    @abstractmethod
    def blocks(self, log: ProblemLog) -> Iterator[Block]:
        """The rows, parsed and digested; problems go to `log`."""

    def digests(self, log: ProblemLog) -> Iterator[Block]:
        """The same, perhaps without the fields of the rows."""
        return self.blocks(log)

    @abstractmethod
    def parts(self, sides: NDArray[np.uint8]) -> Iterator[Part]:
        """The rows as lines.

        Args:
            sides: For each row the number of its output.
        """


class JsonLines(Input):
    """Rows that keep their bytes."""

    def __init__(self, path: Path, stream: Any) -> None:
        self._path, self._stream = path, stream

    def blocks(self, log: ProblemLog) -> Iterator[Block]:
        """The rows, parsed and digested."""
        return read_blocks(self._path, self._stream, log)

    def digests(self, log: ProblemLog) -> Iterator[Block]:
        """The rows, digested."""
        return read_digests(self._path, self._stream, log)

    def parts(self, sides: NDArray[np.uint8]) -> Iterator[Part]:
        """The rows without the space around them, each with a line feed."""
        import numpy as np

        done = 0
        for block in cut(self._stream.read, _PIECE):
            text = block if block.endswith(b"\n") else block + b"\n"
            octets = np.frombuffer(text, np.uint8)
            ends = np.flatnonzero(octets == ord("\n")) + 1
            if not _bare(text, octets, ends):
                text = b"".join(row + b"\n" for line in lines_of(text) if (row := line.strip(SPACE)))
                ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
            if len(ends) > len(sides) - done:
                return  # the file grew since it was read first: whoever asked will see that
            if len(ends):
                yield from _dealt(text, ends, sides[done : done + len(ends)])
            done += len(ends)


def _bare(text: bytes, octets: NDArray[np.uint8], ends: NDArray[np.intp]) -> bool:
    """Whether each line is a row and nothing else, ended by a line feed."""
    starts = ends[:-1]
    framed = octets[0] == ord("{") and (octets[starts] == ord("{")).all() and (octets[ends - 2] == ord("}")).all()
    return bool(framed) and b"\r" not in text


def _dealt(text: bytes, ends: NDArray[np.intp], sides: NDArray[np.uint8]) -> Iterator[Part]:
    """Neighbouring rows of one side are copied together."""
    import numpy as np

    last = np.append(np.flatnonzero(sides[1:] != sides[:-1]), len(sides) - 1)
    stops = ends[last].tolist()
    runs = list(zip(sides[last].tolist(), [0, *stops[:-1]], stops, strict=True))
    view = memoryview(text)
    for side in sorted({run[0] for run in runs}):
        rows = b"".join([view[start:stop] for of, start, stop in runs if of == side])
        yield Part(side, rows, int(np.count_nonzero(sides == side)))


class Records(Input):
    """Rows of a file that is no JSON lines: they are written as such."""

    def __init__(self, read: Callable[[ProblemLog], Found]) -> None:
        self._read = read

    def blocks(self, log: ProblemLog) -> Iterator[Block]:
        """The rows, parsed and digested."""
        rows = iter(self._read(log))
        while some := list(islice(rows, _ROWS)):
            texts, good = 0, []
            for ref, fields in some:
                try:
                    texts += len(as_line(fields))
                except (TypeError, ValueError) as error:
                    log.add(_unspeakable(ref, error))
                    continue
                good.append(fields)
            yield Block(b"".join(map(row_digest, good)), good, texts)

    def parts(self, sides: NDArray[np.uint8]) -> Iterator[Part]:
        """The rows as JSON."""
        for (_, fields), side in zip(self._read(ProblemLog()), sides.tolist(), strict=False):
            yield Part(side, as_line(fields), 1)


def as_line(fields: dict[str, Any]) -> bytes:
    """A row as JSON, with its line feed; dates and decimals become text.

    Raises:
        TypeError: If it holds what JSON has no words for.
        ValueError: If it holds a number that is not finite.
    """
    return json.dumps(fields, ensure_ascii=False, allow_nan=False, default=_spelt).encode() + b"\n"


def _unspeakable(ref: RowRef, error: Exception) -> Problem:
    hint = "save it as text, or leave the column out"
    return Problem("LF-DATA-101", f"cannot be written as JSON: {error}", str(ref), hint)


def _spelt(value: Any) -> str:
    if isinstance(value, _SPELT):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"a value of the kind {type(value).__name__}")


class Elements(Records):
    """Rows of a JSON array: they keep their bytes, unless they go over lines."""

    def __init__(self, path: Path, stream: Any) -> None:
        super().__init__(lambda log: ((RowRef(str(path), row.line), row.fields) for row in self._raw(log)))
        self._path, self._stream = path, stream

    def _raw(self, log: ProblemLog) -> Iterator[RawRow]:
        return read_array(self._path, self._stream.read(), log)

    def parts(self, sides: NDArray[np.uint8]) -> Iterator[Part]:
        """The rows without the space around them, each with a line feed."""
        for row, side in zip(self._raw(ProblemLog()), sides.tolist(), strict=False):
            over_lines = b"\n" in row.raw or b"\r" in row.raw
            yield Part(side, as_line(row.fields) if over_lines else row.raw + b"\n", 1)
