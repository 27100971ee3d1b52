"""Reads a file of JSON lines block by block, so that what is done to each row is done by few calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llamafarm.data.digests import form_digest, row_digest
from llamafarm.data.problems import ProblemLog
from llamafarm.data.quick import quick_rows
from llamafarm.data.rows import BOM, refuse_utf16, rows_of_lines

BLOCK = 1 << 16
"""Bytes read at once: what a block becomes stays in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring rows.

    Attributes:
        digests: Of each row, one after the other.
        fields: The rows, parsed.
        size: Bytes of the file that the block stands for.
    """

    digests: bytes
    fields: Sequence[dict[str, Any]]
    size: int


def read_blocks(path: Path, stream: BinaryIO, log: ProblemLog) -> Iterator[Block]:
    """The good rows of a stream of JSON lines; problems go to `log`."""
    if refuse_utf16(path, stream, log):
        return
    number = 0
    for block in cut(stream, BLOCK):
        lines = lines_of(block)
        if found := quick_rows(block, lines):
            fields, forms = found
            digests = b"".join(map(form_digest, forms))
        else:
            numbered = enumerate(lines, number + 1)
            fields = [row.fields for row in rows_of_lines(path, numbered, log)]
            digests = b"".join(map(row_digest, fields))
            if next(numbered, None):
                return
        number += len(lines)
        yield Block(digests, fields, len(block))


def lines_of(block: bytes) -> list[bytes]:
    """The lines of a block without their ends."""
    if b"\r" in block:
        return block.splitlines()
    lines = block.split(b"\n")
    return lines if lines[-1] else lines[:-1]


def cut(stream: BinaryIO, size: int) -> Iterator[bytes]:
    """Pieces of about `size` bytes that end where lines end (LF, CRLF or CR); a byte order mark is left out."""
    rest = [stream.read(size)]
    rest[0] = rest[0].removeprefix(BOM)
    while piece := stream.read(size):
        rest.append(piece)
        end = piece.rfind(b"\n") + 1 or piece.rfind(b"\r", 0, -1) + 1
        if end:
            rest[-1] = piece[:end]
            yield b"".join(rest)
            rest = [piece[end:]]
    if whole := b"".join(rest):
        yield whole
