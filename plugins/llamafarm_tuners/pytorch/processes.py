"""A process of this machine, told from all others that have or had its number."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A process, in numbers that other processes can be told.

    Attributes:
        machine: Digest of what process numbers belong to: the machine, since its start, or a container on it.
        pid: Its number there.
        started: When it began, in the system's ticks; 0: this system does not say.
    """

    machine: int
    pid: int
    started: int

    def numbers(self) -> tuple[int, int, int]:
        """All of it."""
        return self.machine, self.pid, self.started

    def kill(self) -> None:
        """End it, if it is on this machine and still the same; elsewhere its launcher has to."""
        if self.started and self.machine == _machine() and self.started == _started(self.pid):
            try:
                os.kill(self.pid, signal.SIGKILL)  # the one signal that a process that stands still obeys
            except OSError:
                return


def this_process() -> Process:
    """The process that asks."""
    return Process(_machine(), os.getpid(), _started(os.getpid()))


def _machine() -> int:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        boot, space = "", 0
    return int(sha256(f"{socket.gethostname()} {boot} {space}".encode()).hexdigest()[:15], 16)


def _started(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[19])
