"""Reads a part of a file of JSON lines: what a helper process does, beside others that read other parts of it."""

from __future__ import annotations

import pickle
import signal
import sys
from pathlib import Path

from llamafarm.data.lines import BLOCK, cut, lines_of, part
from llamafarm.data.quick import form_digest, quick_rows

Judged = tuple[int, bytes]
"""How many lines there are, and the digests of the rows in them."""


def judge(path: Path, start: int, end: int) -> Judged | None:
    """Read the rows between two places of a file, both at the start of a line.

    Returns:
        None if anything is wrong with a line there: what it is can be said only by who knows its number.
    """
    count, digests = 0, list[bytes]()
    with path.open("rb", buffering=0) as stream:
        for block in cut(part(stream, start, end), BLOCK, begins=start == 0):
            lines = lines_of(block)
            count += len(lines)
            if found := quick_rows(block, lines):
                digests.extend(map(form_digest, found[1]))
            elif (slowly := _strictly(path, lines)) is not None:
                digests.append(slowly)
            else:
                return None
    return count, b"".join(digests)


def _strictly(path: Path, lines: list[bytes]) -> bytes | None:
    from llamafarm.data.digests import row_digest  # all of it is seldom needed, and takes long to import
    from llamafarm.data.problems import ProblemLog
    from llamafarm.data.rows import rows_of_lines

    log = ProblemLog()
    digests = b"".join(row_digest(row.fields) for row in rows_of_lines(path, enumerate(lines), log))
    return None if len(log) else digests


def serve() -> None:
    """Answer what comes in by standard input until it ends, as it does when who asked is gone.

    An interrupt is for who asked: it ends us.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            path, start, end = pickle.load(asked)  # noqa: S301  # from the process that started this one
            answer = judge(path, start, end)
            pickle.dump(answer, answers)
            answers.flush()
        except (EOFError, BrokenPipeError):
            return
