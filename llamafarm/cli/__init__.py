"""The command line: the only place that prints and sets exit codes."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    Args:
        argv: Arguments without the program's name; `sys.argv[1:]` if None.
    """
    if argv is None:
        _speak_utf_8()
    from llamafarm.cli.guard import run

    # torch's CPU threads spin while they wait for one another. Whenever anything else runs on the machine, the one that
    # has no core spins for nothing and the others wait for it: measured 5 times slower than one thread. Sleeping
    # instead costs next to nothing. OpenMP reads this when torch is imported; what the user has set stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    code = run(sys.argv[1:] if argv is None else argv)
    if argv is None and "torch" in sys.modules:
        _end_at_once(code)
    sys.exit(code)


def _end_at_once(code: int) -> None:
    """End the process without taking a million objects apart, which took 0.15 s: their memory goes back as a whole.

    All that was registered for the end is done before. Returns, for python to end as always, where a thread is still
    at work, a profiler or a debugger wants to see the end, or nobody takes what is left to print.
    """
    ours = threading.main_thread()
    at_work = any(thread is not ours and not thread.daemon for thread in threading.enumerate())
    if at_work or sys.getprofile() is not None or sys.gettrace() is not None or sys.flags.inspect:
        return
    atexit._run_exitfuncs()  # noqa: SLF001  # as multiprocessing and mypy do: there is no other name for it
    with suppress(OSError, ValueError):
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)


def _speak_utf_8() -> None:
    """Start over in UTF-8 mode where the locale makes python take file names for ASCII (`LC_ALL=C` without coercion).

    A name in a strategy and the same name on the disk would differ there. Later pythons are always in this mode.
    """
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606  # no shell is wanted
