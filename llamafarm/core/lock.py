"""One process owns a run directory. The system frees the lock of a process that dies, however it dies."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, Self

from llamafarm.core.record import OWN, manifest_of
from llamafarm.errors import RunDirectoryError

try:
    import fcntl
except ImportError:  # pragma: no cover  # Windows: the record alone says who owns it
    fcntl = None  # type: ignore[assignment]

LOCK: Final = "run.lock"
_UNSUPPORTED: Final = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class OwnerLock:
    """Held while a run writes; its file says who holds it.

    Attributes:
        stale: The record of an owner that ended without letting go: killed, or its machine went down.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder, self._run_id = folder, run_id
        self._file: IO[str] | None = None
        self.stale: Mapping[str, Any] | None = None

    def __enter__(self) -> Self:
        """Take it.

        Raises:
            RunDirectoryError: If a living process has it.
        """
        file = (self._folder / OWN / LOCK).open("a+", encoding="utf-8")
        record = _record(file)
        if not _taken(file, record):
            file.close()
            raise owned(self._folder, record)
        self.stale = record or None
        self._file = file
        self._write(json.dumps({"run_id": self._run_id, **this_process()}))
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._write("")
            with suppress(OSError):  # what a full disk did not take is tried once more
                self._file.close()

    def _write(self, text: str) -> None:
        """Replace what the file says; a full disk must not end a run for that."""
        assert self._file is not None
        with suppress(OSError):
            self._file.seek(0)
            self._file.truncate()
            self._file.write(text)
            self._file.flush()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """One process at a time decides whose the folders in `folder` are; where the system has no locks, nobody waits."""
    with ExitStack() as stack:
        with suppress(OSError):
            if fcntl is not None:
                descriptor = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def live_owner(folder: Path) -> Mapping[str, Any] | None:
    """Who is writing into a run directory now; None if nobody is."""
    try:
        with (folder / OWN / LOCK).open("r+", encoding="utf-8") as file:
            record = _record(file)
            return None if _taken(file, record) else record or {"pid": "unknown"}
    except OSError:
        return None


def owned(folder: Path, record: Mapping[str, Any]) -> RunDirectoryError:
    """The refusal that names the owner."""
    run = record.get("run_id") or (manifest_of(folder) or {}).get("run_id", "a run")
    return RunDirectoryError.of(
        "LF-RUN-003",
        f"{run} is writing here (process {record.get('pid')} on {record.get('host', 'this machine')})",
        where=str(folder),
        hint="wait, or use --output",
    )


def this_process() -> dict[str, Any]:
    """What tells this process from all others: none of it is a time of day, which may jump."""
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": os.getpid(),
        "process_started": _started(os.getpid()),
    }


def _taken(file: IO[str], record: Mapping[str, Any]) -> bool:
    """Take the lock; where the file system has none, go by the record."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                return False
        else:
            return True
    return not _alive(record)


def _alive(record: Mapping[str, Any]) -> bool:
    """Whether the process of a record lives, as far as can be told from here."""
    if not record:
        return False
    if record.get("host") != socket.gethostname():
        return True  # it cannot be asked
    if record.get("boot") != _boot():
        return False
    pid = int(record["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _started(pid) == record.get("process_started")


def _record(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        found = json.loads(file.read() or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _boot() -> str:
    """Names this start of the machine."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _started(pid: int) -> int | None:
    """When a process started, in ticks since the machine did: a process id alone is used again."""
    with suppress(OSError, ValueError, IndexError):
        return int(
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
    return None
