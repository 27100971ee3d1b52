"""LLaMA-Factory in a process of its own: started without a shell, listened to, stopped, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llamafarm.api import RunContext

LAUNCH = Path(__file__).with_name("_launch.py")
_POLL_S = 0.1
_GRACE_S = 5.0


class Tail:
    """Reads the lines of a growing file as they are completed."""

    def __init__(self, path: Path) -> None:
        self.path, self._offset, self._rest = path, 0, b""

    def lines(self) -> Iterator[dict[str, Any]]:
        """What has come since the last call; an unfinished line waits."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        *whole, self._rest = (self._rest + new).split(b"\n")
        for line in whole:
            with suppress(ValueError):
                yield json.loads(line)


def run_process(
    python: Path,
    arguments: Path,
    folder: Path,
    environment: Mapping[str, str],
    run: RunContext,
    hear: Callable[[Mapping[str, Any]], None],
) -> tuple[int, Path]:
    """Train in a process of its own session, and wait for its end.

    Args:
        python: The interpreter.
        arguments: The file of arguments.
        folder: Where it works, and where its log and events go.
        environment: All that it finds in its environment.
        run: Asked whether the user wants to stop: then it ends after its step, with a checkpoint.
        hear: Takes what it tells.

    Returns:
        Its exit code, and its log.
    """
    events, log = folder / "events.jsonl", folder / "output.log"
    events.unlink(missing_ok=True)
    tail, asked = Tail(events), False
    with log.open("wb") as out, _started(python, arguments, events, folder, environment, out) as child:
        while child.poll() is None:
            for line in tail.lines():
                hear(line)
            if run.stop_requested and not asked:
                asked = True
                _tell(child, b"stop\n")
            elif run.take_checkpoint_request():
                _tell(child, b"save\n")
            time.sleep(_POLL_S)
        for line in tail.lines():
            hear(line)
        return child.returncode, log


@contextmanager
def _started(
    python: Path, arguments: Path, events: Path, folder: Path, environment: Mapping[str, str], out: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """The process; whatever happens, nothing of its group is left in the end."""
    child = subprocess.Popen(  # noqa: S603  # a list of our own making, no shell
        [str(python), str(LAUNCH), str(arguments), str(events)],
        stdin=subprocess.PIPE,
        stdout=out,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=dict(environment),
        start_new_session=True,
    )
    try:
        yield child
    finally:
        end(child)


def end(child: subprocess.Popen[bytes]) -> None:
    """End a process and its group: with SIGTERM, and what is left after a while with SIGKILL."""
    if child.poll() is None:
        _signal(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(_GRACE_S)
    _signal(child.pid, signal.SIGKILL)  # also of a group whose leader is gone
    child.wait()
    if child.stdin:
        with suppress(BrokenPipeError):
            child.stdin.close()


def _tell(child: subprocess.Popen[bytes], word: bytes) -> None:
    assert child.stdin
    with suppress(BrokenPipeError):
        child.stdin.write(word)
        child.stdin.flush()


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
