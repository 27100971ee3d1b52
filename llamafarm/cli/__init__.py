"""The command line: the only place that prints and sets exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


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
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def _speak_utf_8() -> None:
    """Start over in UTF-8 mode where the locale makes python take file names for ASCII (`LC_ALL=C` without coercion).

    A name in a strategy and the same name on the disk would differ there. Later pythons are always in this mode.
    """
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606  # no shell is wanted
