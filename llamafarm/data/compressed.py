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
        DataError: If the packed bytes are damaged or cut off.
        PluginError: If zstandard is not installed.
        OSError: If the file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        with gzip.open(path, "rb") as stream, _damage_explained(path, zlib.error):
            yield cast("BinaryIO", stream)
    elif suffix == ".zst":
        zstandard = require("zstandard", path)
        with path.open("rb") as packed, _damage_explained(path, zstandard.ZstdError):
            yield cast("BinaryIO", BufferedReader(_Frames(packed, zstandard.ZstdDecompressor())))
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
