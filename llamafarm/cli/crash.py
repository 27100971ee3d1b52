"""The report file about a defect: what a maintainer needs, without secrets."""

from __future__ import annotations

import os
import platform
import shlex
import time
import traceback
from pathlib import Path
from tempfile import mkstemp

from llamafarm import __version__
from llamafarm.cli.redact import redact
from llamafarm.cli.session import Session


def traceback_of(session: Session, error: BaseException) -> str:
    """The traceback of `error` without secrets; local variables are never part of it."""
    return redact("".join(traceback.format_exception(error)).rstrip(), session.environment)


def write_report(session: Session, error: BaseException) -> str:
    """Write the report and return a sentence that says where it is, or why there is none."""
    from platformdirs import user_state_path

    try:
        folder = user_state_path("llamafarm", appauthor=False) / "crashes"
        folder.mkdir(parents=True, exist_ok=True)
        path = _write(folder, session, error)
    except OSError as problem:
        return f"no report could be written ({problem}), run again with --debug"
    return f"report: {path}"


def _write(folder: Path, session: Session, error: BaseException) -> Path:
    lines = [
        f"llamafarm {__version__}",
        f"python {platform.python_version()} on {platform.platform()}",
        f"command: llamafarm {redact(shlex.join(session.argv), session.environment)}",
        "",
        traceback_of(session, error),
    ]
    prefix = time.strftime("crash-%Y%m%dT%H%M%SZ-", time.gmtime())
    handle, name = mkstemp(prefix=prefix, suffix=".txt", dir=folder)  # readable by its owner alone
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return Path(name)
