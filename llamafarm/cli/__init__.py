"""The command line: the only place that prints and sets exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    Args:
        argv: Arguments without the program's name; `sys.argv[1:]` if None.
    """
    from llamafarm.cli.guard import run

    sys.exit(run(sys.argv[1:] if argv is None else argv))
