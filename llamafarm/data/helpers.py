"""Reads parts of a file in processes of their own, one for each core."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from queue import SimpleQueue

from llamafarm.data.judge import Judged

MOST = 4
"""Helpers at most: from here on, writing takes longer than reading, and each helper takes some 25 MB of memory."""

_CODE = "import sys; sys.path[:] = sys.argv[1:]; from llamafarm.data.judge import serve; serve()"


def helpers_for(parts: int) -> int:
    """How many helpers pay for so many parts of a file: 0 where one process alone reads as fast."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(cores, parts, MOST)
    return count if count > 1 and sys.executable else 0


def judged(path: Path, parts: Sequence[tuple[int, int]], count: int) -> Generator[Judged | None]:
    """What `judge` says of each part, in their order; None also where a helper failed.

    The helpers are gone when this ends, in whatever way: they are killed, and where not even that is possible they end
    with their input.
    """
    helpers, idle = list[subprocess.Popen[bytes]](), SimpleQueue[subprocess.Popen[bytes]]()

    def ask(bounds: tuple[int, int]) -> Judged | None:
        helper = idle.get()
        try:
            return _ask(helper, path, *bounds)
        except (OSError, EOFError, pickle.UnpicklingError):
            return None
        finally:
            idle.put(helper)

    with ThreadPoolExecutor(count) as threads:  # each waits for a helper
        try:
            with suppress(OSError):  # no more processes for us
                for _ in range(count):
                    helpers.append(_started())
                    idle.put(helpers[-1])
            yield from threads.map(ask, parts) if helpers else repeat(None, len(parts))
        finally:
            for helper in helpers:
                helper.kill()
            threads.shutdown(cancel_futures=True)
            for helper in helpers:
                _closed(helper)


def _started() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _CODE, *sys.path]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null)  # noqa: S603  # our own code


def _ask(helper: subprocess.Popen[bytes], path: Path, start: int, end: int) -> Judged | None:
    assert helper.stdin
    assert helper.stdout
    pickle.dump((path, start, end), helper.stdin)
    helper.stdin.flush()
    answer: Judged | None = pickle.load(helper.stdout)  # noqa: S301  # from a process of our own code
    return answer


def _closed(helper: subprocess.Popen[bytes]) -> None:
    assert helper.stdin
    assert helper.stdout
    with suppress(OSError):  # what was not sent yet stays unsent
        helper.stdin.close()
    helper.stdout.close()
    helper.wait()
