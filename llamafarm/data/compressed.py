"""Opens files as they are, or unpacked: gzip by `.gz`, zstandard by `.zst`; both are streamed."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, cast

from llamafarm.data.extra import require
from llamafarm.errors import DataError

_SUFFIXES = (".gz", ".zst")
_ALWAYS, _RATIO = 1 << 26, 200
"""Unpacked bytes that are always fine, and how many times the packed ones at most: text shrinks to a twentieth."""
_WINDOW = 1 << 27
"""Memory that a zstandard frame may ask for, in bytes: what its strongest ordinary level takes."""


def is_packed(path: Path) -> bool:
    """Whether its suffix says that it is packed."""
    return path.suffix.lower() in _SUFFIXES


def plain_name(path: Path) -> str:
    """The name without the suffix of packing: `data.csv` of `data.csv.gz`."""
    return path.stem if is_packed(path) else path.name


def plain_suffix(path: Path) -> str:
    """The suffix that tells the kind of rows: `.csv` of `data.csv.gz`; in lower case."""
    return Path(plain_name(path)).suffix.lower()


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked where its suffix says that they are packed.

    Raises:
        DataError: If it is no ordinary file, or the packed bytes are damaged, cut off, or a bomb.
        PluginError: If zstandard is not installed.
        OSError: If the file cannot be read.
    """
    _require_ordinary(path)
    suffix = path.suffix.lower()
    if suffix == ".gz":
        with gzip.open(path, "rb") as stream, _damage_explained(path, zlib.error):
            yield cast("BinaryIO", BufferedReader(_Measured(path, cast("RawIOBase", stream))))
    elif suffix == ".zst":
        zstandard = require("zstandard", path)
        with path.open("rb") as packed, _damage_explained(path, zstandard.ZstdError):
            frames = _Frames(packed, zstandard.ZstdDecompressor(max_window_size=_WINDOW))
            yield cast("BinaryIO", BufferedReader(_Measured(path, frames)))
    else:
        with path.open("rb") as stream:
            yield stream


@contextmanager
def _damage_explained(path: Path, damage: type[Exception]) -> Iterator[None]:
    try:
        yield
    except (damage, EOFError, gzip.BadGzipFile) as error:
        message = f"cannot be unpacked: {str(error) or 'damaged'}"
        raise DataError.of("LF-DATA-040", message, where=str(path), hint="pack it again, or give it unpacked") from None


def _require_ordinary(path: Path) -> None:
    """Refuse devices, pipes and the system's own pseudo-files: reading them blocks, never ends, or tells secrets.

    Those of /proc and /sys call themselves ordinary files, and are known by their place alone.
    """
    if not path.exists():
        return  # whoever opens it says so
    real = path.resolve()
    if real.is_relative_to("/proc") or real.is_relative_to("/sys"):
        raise DataError.of("LF-DATA-240", "a file of the system, not of rows", where=str(path), hint="save the rows")
    if not path.is_file() and not path.is_dir():
        raise DataError.of("LF-DATA-240", "a pipe or device, not a file", where=str(path), hint="save it to a file")


class _Measured(RawIOBase):
    """What is unpacked, as long as it is in proportion to what was packed."""

    def __init__(self, path: Path, unpacked: RawIOBase) -> None:
        super().__init__()
        self._path, self._unpacked, self._count = path, unpacked, 0
        self._most = max(_ALWAYS, _RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = cast("int", self._unpacked.readinto(buffer))
        self._count += count
        if self._count > self._most:
            message = f"unpacks to more than {self._most:,} bytes, {_RATIO} times what is packed"
            raise DataError.of("LF-DATA-241", message, where=str(self._path), hint="give it unpacked, if that is right")
        return count


class _Frames(RawIOBase):
    """The content of all zstandard frames of a file; the library's own reader takes a cut off file for a whole one."""

    def __init__(self, packed: BinaryIO, decompressor: Any) -> None:
        super().__init__()
        self._packed, self._decompressor = packed, decompressor
        self._frame: Any = None
        self._rest, self._ready = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and self._more():
            pass
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _more(self) -> bool:
        """Unpack another piece; False at the end of the file."""
        packed = self._rest or self._packed.read(1 << 16)
        if not packed:
            if self._frame is not None:
                raise EOFError("it is cut off")
            return False
        if self._frame is None:
            self._frame = self._decompressor.decompressobj()
        self._ready = memoryview(self._frame.decompress(packed))
        self._rest = b""
        if self._frame.eof:
            self._rest, self._frame = self._frame.unused_data, None
        return True
