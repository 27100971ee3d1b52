"""Commands in processes of their own, without the seconds that importing takes: forked off one that has imported all.

Such a process is what `python -m llamafarm` becomes once it has imported what training needs: it has its own memory,
signals, folder and environment, and takes real signals. Where forking is not safe it is that very program.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

_HEAVY = ("torch", "accelerate", "transformers", "peft", "llamafarm.cli.train", "llamafarm_tuners.pytorch._fit")


@dataclass
class Command:
    """A command that was started.

    Attributes:
        pid: Its process.
        err: File that takes what it writes to stderr.
    """

    pid: int
    err: Path
    _ask: Any
    _read: int = 0

    def wait_for(self, text: str, seconds: float = 100) -> None:
        """Wait until it has written a whole line with `text` that was not read before.

        Raises:
            AssertionError: If it does not in time.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            *whole, _ = self.err.read_bytes()[self._read :].split(b"\n")
            for line in whole:
                self._read += len(line) + 1
                if text.encode() in line:
                    return
            time.sleep(0.01)
        raise AssertionError(f"it never said {text!r}: {self.said()}")

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code; negative: the signal that ended it."""
        return int(self._ask({"wait": self.pid}))

    def said(self) -> str:
        """All that it wrote to stderr."""
        return self.err.read_text(encoding="utf-8", errors="replace")


class Forks:
    """The process that others are forked off; a context."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        with self._server:
            assert self._server.stdin is not None
            self._server.stdin.close()

    def start(self, argv: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Command:
        """Run `llamafarm ARGV` in a folder, with this environment and no other."""
        self._count += 1
        err = self._folder / f"command-{self._count}.err"
        err.touch()
        wanted = {"argv": list(argv), "folder": str(folder), "environment": dict(environment), "err": str(err)}
        return Command(int(self._ask(wanted)), err, self._ask)

    def run(self, argv: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
        """The same, to its end: exit code, and what it wrote to stderr."""
        command = self.start(argv, folder, environment)
        return command.wait(), command.said()

    def _ask(self, wanted: Mapping[str, Any]) -> Any:
        assert self._server is not None
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(wanted), file=self._server.stdin, flush=True)
        answer = self._server.stdout.readline()
        assert answer, "the process that others are forked off has ended"
        return json.loads(answer)


def _serve(requests: IO[str], answers: IO[str]) -> None:
    for name in _HEAVY if sys.platform == "linux" else ():
        __import__(name)
    for line in requests:
        wanted = json.loads(line)
        if "wait" in wanted:
            _, status = os.waitpid(wanted["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                _become(wanted)
        print(json.dumps(answer), file=answers, flush=True)


def _become(wanted: Mapping[str, Any]) -> None:
    """Be the command; this process ends here."""
    code = 70
    try:
        os.chdir(wanted["folder"])
        os.environ.clear()
        os.environ.update(wanted["environment"])
        nothing, err = os.open(os.devnull, os.O_RDWR), os.open(wanted["err"], os.O_WRONLY | os.O_CREAT, 0o600)
        for number, descriptor in enumerate((nothing, nothing, err)):
            os.dup2(descriptor, number)
        if sys.platform != "linux":
            os.execv(sys.executable, [sys.executable, "-m", "llamafarm", *wanted["argv"]])  # ourselves
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from llamafarm.cli.guard import run

        code = run(wanted["argv"])
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)
