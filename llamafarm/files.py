"""Writing files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(*paths: Path) -> Iterator[Sequence[BinaryIO]]:
    """Open files that are there whole, and all of them, or not at all.

    Each is written under another name in its folder, which is made if need be. They get their own names when the body
    ends well and the system has them on disk; else what stood there before stays.

    Raises:
        OSError: If one cannot be written.
    """
    parts = [path.with_name(f".{path.name}.{os.getpid()}.part") for path in paths]
    try:
        with ExitStack() as stack:
            for part in parts:
                part.parent.mkdir(parents=True, exist_ok=True)
            files = [stack.enter_context(part.open("wb")) for part in parts]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for part, path in zip(parts, paths, strict=True):
            part.replace(path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that is there whole or not at all, by way of a temporary name in the same folder."""
    with replacing(path) as (stream,):
        stream.write(text.encode())


@contextmanager
def system_errors() -> Iterator[None]:
    """Make an OSError of what tokenizers and others raise for one: a bare exception that numbers the error in its text.

    Raises:
        OSError: If that is what it was.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        raise


def sync_file(path: Path) -> None:
    """Have what was written to a file on the disk itself, so that it survives a loss of power."""
    with path.open("rb") as opened:
        os.fsync(opened.fileno())


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk itself; systems that cannot open folders are left to themselves."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_name(folder: Path, name: str) -> str:
    """A name like this one that nothing in the folder has."""
    while os.path.lexists(folder / name):
        name += ".before"
    return name
