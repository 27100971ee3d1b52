"""Reads a file of JSON lines block by block, so that what is done to each row is done by few calls."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llamafarm.data.compressed import is_packed
from llamafarm.data.digests import row_digest
from llamafarm.data.helpers import helpers_for, judged
from llamafarm.data.lines import BLOCK, cut, lines_of, part, ranges
from llamafarm.data.problems import ProblemLog
from llamafarm.data.quick import form_digest, quick_rows
from llamafarm.data.rows import refuse_utf16, rows_of_lines

PART = 1 << 22
"""Bytes that a helper process reads at once."""
LARGE = 1 << 25
"""Bytes of a file that are worth the start of helpers."""


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring rows.

    Attributes:
        digests: Of each row, one after the other.
        fields: The rows, parsed; none where only digests are asked for.
        size: Bytes of the file that the block stands for.
    """

    digests: bytes
    fields: Sequence[dict[str, Any]]
    size: int


def read_blocks(path: Path, stream: BinaryIO, log: ProblemLog) -> Iterator[Block]:
    """The good rows of a stream of JSON lines; problems go to `log`."""
    if not refuse_utf16(path, stream, log):
        yield from _parsed(path, cut(stream.read, BLOCK), log, 0)


def read_digests(path: Path, stream: BinaryIO, log: ProblemLog) -> Iterator[Block]:
    """The same without fields. The parts of a large file are read in processes of their own, one for each core.

    What they refuse is read here again, so that what is said of a line does not depend on who read it.
    """
    size = path.stat().st_size if path.is_file() and not is_packed(path) else 0
    helpers = helpers_for(size // PART) if size >= LARGE else 0
    if not helpers:
        yield from read_blocks(path, stream, log)
        return
    if refuse_utf16(path, stream, log):
        return
    parts, number = list(ranges(stream, size, PART)), 0
    with closing(judged(path, parts, helpers)) as answers:
        for (start, end), answer in zip(parts, answers, strict=True):
            if answer is None:
                blocks = cut(part(stream, start, end), BLOCK, begins=start == 0)
                count = yield from _parsed(path, blocks, log, number)
            else:
                count, digests = answer
                yield Block(digests, (), end - start)
            if count is None:
                return
            number += count


def _parsed(path: Path, blocks: Iterable[bytes], log: ProblemLog, number: int) -> Generator[Block, None, int | None]:
    """The good rows of blocks that come after so many lines; problems go to `log`.

    Returns:
        How many lines there are; None if nothing after them can be read either.
    """
    before = number
    for block in blocks:
        lines = lines_of(block)
        if found := quick_rows(block, lines):
            fields, forms = found
            digests = b"".join(map(form_digest, forms))
        else:
            numbered = enumerate(lines, number + 1)
            fields = [row.fields for row in rows_of_lines(path, numbered, log)]
            digests = b"".join(map(row_digest, fields))
            if next(numbered, None):
                return None
        number += len(lines)
        yield Block(digests, fields, len(block))
    return number - before
