"""Signs of life between the processes of a run: one that stands still or is gone ends the run of all, to be resumed.

Without them the others wait in a collective operation for as long as PyTorch does: half an hour. A thread in each
process sends a byte now and then, to the first process and from it; it goes on while the process computes, evaluates or
saves, and stops with the process: when that is stopped (SIGSTOP), or its machine hangs. Where a process dies, the
system closes its connection, which is seen at once. Where only the main thread stands still, in a disk that does not
answer for example, the thread sees that it makes no progress, and gives its own process up.
"""

from __future__ import annotations

import os
import secrets
import select
import shlex
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from accelerate import Accelerator

from llamafarm.api import RunContext
from llamafarm.errors import ExitCode, LlamaFarmError, Stopped
from llamafarm_tuners.pytorch.processes import Process, this_process
from llamafarm_tuners.pytorch.progress import PROGRESS

GRACE: Final = 3.0
"""Seconds that the main thread has to end the run in order, once the exchange that it waits in has failed."""

_CONNECT: Final = 20.0
_FAREWELL: Final = 1.0
_BEAT, _BYE, _LOST = b".", b"bye", b"lost"


@dataclass(frozen=True, slots=True)
class Lost:
    """A process that others wait for in vain.

    Attributes:
        rank: Its number.
        seconds: How long it has been silent; None: it is gone.
        doing: What its main thread stands still in, if the process itself says so.
    """

    rank: int
    seconds: float | None
    doing: str = ""

    def told(self, processes: Sequence[Process]) -> str:
        """The line for the user."""
        who = f"process {self.rank} of {len(processes)} (pid {processes[self.rank].pid})"
        if self.seconds is None:
            return f"{who} has died [LF-RUN-071]"
        since = time.strftime("%H:%M:%S", time.localtime(time.time() - self.seconds))
        if self.doing:
            return f"{who} has stood still in {self.doing} for {self.seconds:.1f} s, since {since} [LF-RUN-110]"
        return f"{who} has shown no sign of life for {self.seconds:.1f} s, since {since} [LF-RUN-070]"


@contextmanager
def heartbeat(accelerator: Accelerator, limit: float, run: RunContext) -> Iterator[None]:
    """Watch over the other processes of a run while it lasts; for one process, or without a limit, nothing.

    Args:
        accelerator: The processes; all have to come here.
        limit: Seconds without a sign of life after which a process counts as lost; 0: never.
        run: Told if the processes cannot be connected.

    Raises:
        Stopped: If a process is lost; exit code 75. Where the main thread does not come to raise it, the process ends
            after `GRACE` seconds.
    """
    if accelerator.num_processes == 1:
        yield
        return
    with ExitStack() as stack:
        watch = stack.enter_context(_connected(accelerator, limit, run)) if limit else None
        try:
            yield
        except BaseException as error:
            if isinstance(error, LlamaFarmError):
                raise
            said = watch.verdict_on(error) if watch else None
            said = _unanswered(error) if said is None else said
            if said is None:
                raise
            raise Stopped(ExitCode.REQUEUE, said) from error


def _is_exchange(error: BaseException) -> bool:
    """Whether an exchange between processes failed: gloo says so in words alone."""
    known = isinstance(error, torch.distributed.DistError) or "gloo" in str(error).casefold()
    return isinstance(error, RuntimeError) and known


def _unanswered(error: BaseException) -> str | None:
    if not _is_exchange(error):
        return None
    return f"an exchange with the other processes failed: {str(error).partition(chr(10))[0][:200]} [LF-RUN-072]"


@contextmanager
def _connected(accelerator: Accelerator, limit: float, run: RunContext) -> Iterator[_Watch]:
    rank, host = accelerator.process_index, os.environ.get("MASTER_ADDR", "localhost")
    with ExitStack() as stack:
        listener, port = None, 0
        if rank == 0:
            with suppress(OSError):
                listener = stack.enter_context(_listening(host))
                port = listener.getsockname()[1]
        own = [*this_process().numbers(), port, secrets.randbits(62)]
        everyone = accelerator.gather(torch.tensor([own], device=accelerator.device)).tolist()
        processes = [Process(*row[:3]) for row in everyone]
        port, token = everyone[0][3:]
        friends = _accepted(listener, len(processes) - 1, token) if listener else _joined(host, port, rank, token)
        for friend in friends.values():
            stack.enter_context(friend)
        if len(friends) < (len(processes) - 1 if rank == 0 else 1):
            message = f"processes cannot be connected on {host}: one that hangs is noticed after half an hour only"
            run.emit("warning", message=message)
        watch = _Watch(rank, processes, friends, limit, run.output_dir)
        watch.start()
        try:
            yield watch
        finally:
            watch.close()


def _listening(host: str) -> socket.socket:
    """Only where the processes meet anyway."""
    family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family, backlog=1024)


def _accepted(listener: socket.socket, count: int, token: int) -> dict[int, socket.socket]:
    """The connections of the other processes, by their numbers; who does not know the token is turned away."""
    found: dict[int, socket.socket] = {}
    end = time.monotonic() + _CONNECT
    while len(found) < count and (left := end - time.monotonic()) > 0:
        listener.settimeout(left)
        with suppress(OSError, ValueError):
            connection, _ = listener.accept()
            connection.settimeout(1)
            said, rank = (int(word) for word in connection.makefile("rb").readline(100).split())
            if said == token and 0 < rank <= count and rank not in found:
                found[rank] = connection
            else:
                connection.close()
    return found


def _joined(host: str, port: int, rank: int, token: int) -> dict[int, socket.socket]:
    if port == 0:
        return {}
    with suppress(OSError):
        connection = socket.create_connection((host, port), timeout=_CONNECT)
        connection.sendall(b"%d %d\n" % (token, rank))
        return {0: connection}
    return {}


class _Watch(threading.Thread):
    """The thread that shows life and looks for it: in the first process at all others, in each other at the first."""

    def __init__(
        self, rank: int, processes: Sequence[Process], friends: Mapping[int, socket.socket], limit: float, folder: Path
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._rank, self._processes, self._limit, self._folder = rank, processes, limit, folder
        self._friends = dict(friends)
        self._heard = dict.fromkeys(friends, 0.0)
        self._rest = dict.fromkeys(friends, b"")
        self._tick = min(1.0, limit / 8)
        self._lived = 0.0  # seconds, without those in which this process itself stood still
        self._seen, self._moved = PROGRESS.now, 0.0
        self._closing, self._decided = threading.Event(), threading.Event()
        self._woken, self._wake = socket.socketpair()
        self._lost: Lost | None = None
        for friend in friends.values():
            friend.setblocking(False)

    def verdict_on(self, error: BaseException) -> str | None:
        """What ended the run, if it is that a process is lost: an exchange fails a moment before that is known.

        One of the processes that are left says it; the others' word is empty.
        """
        if _is_exchange(error):
            self._decided.wait(GRACE)
        lost = self._lost
        if lost is None:
            return None
        return lost.told(self._processes) if self._speaks(lost) else ""

    def close(self) -> None:
        """Take leave, so that nobody takes this process for dead."""
        self._closing.set()
        with suppress(OSError):
            self._wake.send(_BEAT)
        self.join(2 * _FAREWELL)
        if not self.is_alive():
            self._wake.close()
            self._woken.close()

    def run(self) -> None:
        """Beat and watch until the run is over, or has to be."""
        last = time.monotonic()
        while not self._closing.is_set():
            self._send(_BEAT)
            self._listen(self._tick)
            now = time.monotonic()
            self._lived += min(now - last, 2 * self._tick)
            last = now
            lost = self._lost or self._silent() or self._still()
            if lost is not None and not self._closing.is_set():
                self._end(lost)
                return
        self._take_leave()

    def _speaks(self, lost: Lost) -> bool:
        return self._rank == next(rank for rank in range(len(self._processes)) if rank != lost.rank)

    def _silent(self) -> Lost | None:
        for rank, heard in self._heard.items():
            if self._lived - heard > self._limit:
                return Lost(rank, self._lived - heard)
        return None

    def _still(self) -> Lost | None:
        """This process, if its own main thread has made no progress for too long."""
        if self._seen != (now := PROGRESS.now):
            self._seen, self._moved = now, self._lived
        doing, seconds = now[1], self._lived - self._moved
        if doing and seconds > PROGRESS.allowed(doing, self._limit):
            return Lost(self._rank, seconds, doing)
        return None

    def _end(self, lost: Lost) -> None:
        """End the run. What the main thread waits for fails when the silent process is killed.

        One that stands still itself waits to be killed by the others, on its own machine; else it ends like them.
        """
        self._lost = lost
        seconds = -1 if lost.seconds is None else lost.seconds
        self._send(b"%s %d %.3f %s" % (_LOST, lost.rank, seconds, lost.doing.encode()))
        self._decided.set()
        if lost.rank != self._rank:
            self._processes[lost.rank].kill()
        if not self._closing.wait(GRACE):
            if self._speaks(lost):
                command = f"llamafarm train --resume {shlex.quote(str(self._folder))}"
                with suppress(OSError):  # not by way of what the main thread may be holding
                    os.write(2, f"{lost.told(self._processes)}\ngo on with: {command}\n".encode())
            os._exit(ExitCode.REQUEUE)

    def _send(self, message: bytes) -> None:
        for friend in self._friends.values():
            with suppress(OSError):  # it is full because nobody reads, or closed, which is seen when it is read
                friend.send(message + b"\n")

    def _listen(self, seconds: float) -> None:
        """Hear what comes within some seconds."""
        ranks = {friend: rank for rank, friend in self._friends.items()}
        ready, _, _ = select.select([self._woken, *ranks], [], [], seconds)
        for friend in ready:
            if friend is not self._woken:
                self._hear(ranks[friend], friend)
        if not ready or self._woken in ready or self._closing.is_set():
            return
        time.sleep(self._tick / 2)  # what comes from many is heard at once

    def _hear(self, rank: int, friend: socket.socket) -> None:
        try:
            came = friend.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            came = b""
        if not came:
            self._forget(rank)
            self._lost = self._lost or Lost(rank, None)
            return
        self._heard[rank] = self._lived
        *lines, self._rest[rank] = (self._rest[rank] + came).split(b"\n")
        for line in lines:
            word, *more = line.split()
            if word == _BYE:
                self._forget(rank)
                break
            if word == _LOST and int(more[0]) != self._rank:
                seconds = float(more[1])
                doing = b" ".join(more[2:]).decode(errors="replace")
                self._lost = self._lost or Lost(int(more[0]), None if seconds < 0 else seconds, doing)

    def _forget(self, rank: int) -> None:
        self._friends.pop(rank).close()
        del self._heard[rank]

    def _take_leave(self) -> None:
        """Say so, and wait for the others to have read it: a connection with something unread would just break."""
        self._send(_BYE)
        end = time.monotonic() + _FAREWELL
        for friend in self._friends.values():
            with suppress(OSError):
                friend.shutdown(socket.SHUT_WR)
                friend.settimeout(max(0.01, end - time.monotonic()))
                while friend.recv(1 << 16):
                    pass
