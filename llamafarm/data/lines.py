"""Cuts files into pieces that end where lines end; light to import, for every helper process begins with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO

BOM = b"\xef\xbb\xbf"
BLOCK = 1 << 16
"""Bytes read at once: what a block becomes stays in the processor's cache."""

Read = Callable[[int], bytes]


def lines_of(block: bytes) -> list[bytes]:
    """The lines of a block without their ends."""
    if b"\r" in block:
        return block.splitlines()
    lines = block.split(b"\n")
    return lines if lines[-1] else lines[:-1]


def cut(read: Read, size: int, *, begins: bool = True) -> Iterator[bytes]:
    """Pieces of about `size` bytes that end where lines end (LF, CRLF or CR).

    Args:
        read: Gives the next bytes, at most as many as it is asked for, and none at the end.
        size: How many it is asked for.
        begins: It gives the begin of a file, so that a byte order mark is left out.
    """
    rest = [read(size)]
    if begins:
        rest[0] = rest[0].removeprefix(BOM)
    while piece := read(size):
        rest.append(piece)
        end = piece.rfind(b"\n") + 1 or piece.rfind(b"\r", 0, -1) + 1
        if end:
            rest[-1] = piece[:end]
            yield b"".join(rest)
            rest = [piece[end:]]
    if whole := b"".join(rest):
        yield whole


def part(stream: BinaryIO, start: int, end: int) -> Read:
    """What reads the bytes of a file from `start` to before `end`."""
    left = end - start
    stream.seek(start)

    def read(size: int) -> bytes:
        nonlocal left
        piece = stream.read(min(size, left))
        left -= len(piece)
        return piece

    return read


def ranges(stream: BinaryIO, size: int, step: int) -> Iterator[tuple[int, int]]:
    """Parts of a file of `size` bytes, as start and end, in order: at least `step` bytes each, and an LF at the end."""
    start = 0
    while start < size:
        end = min(start + step, size)
        stream.seek(end - 1)
        while end < size and (piece := stream.read(BLOCK)):
            found = piece.find(b"\n")
            if found >= 0:
                end += found
                break
            end += len(piece)
        end = min(end, size)
        yield start, end
        start = end
