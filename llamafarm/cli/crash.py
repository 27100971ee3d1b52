"""The report file about a defect: what a maintainer needs, without secrets."""

from __future__ import annotations

import os
import platform
import shlex
import time
import traceback
from pathlib import Path

from llamafarm import __version__
from llamafarm.cli.redact import redact
from llamafarm.cli.session import Session


def traceback_of(session: Session, error: BaseException) -> str:
    """The traceback of `error` without secrets; local variables are never part of it."""
    return redact("".join(traceback.format_exception(error)).rstrip(), session.environment)


def write_report(session: Session, error: BaseException) -> str:
    """Write the report and return a sentence that says where it is, or why there is none."""
    from platformdirs import user_state_path

    name = f"crash-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}.txt"
    try:
        folder = user_state_path("llamafarm", appauthor=False) / "crashes"
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / name, session, error)
    except OSError as problem:
        return f"no report could be written ({problem}), run again with --debug"
    return f"report: {folder / name}"


def _write(path: Path, session: Session, error: BaseException) -> None:
    lines = [
        f"llamafarm {__version__}",
        f"python {platform.python_version()} on {platform.platform()}",
        f"command: llamafarm {redact(shlex.join(session.argv), session.environment)}",
        "",
        traceback_of(session, error),
    ]
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
