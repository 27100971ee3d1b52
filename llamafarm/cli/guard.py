"""The one place that runs a command: every way in which it can end becomes lines on stderr and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any, Final

import typer

from llamafarm.cli.hush import hushed
from llamafarm.cli.problems import show_problems
from llamafarm.cli.root import complete_shell, program
from llamafarm.cli.session import Session
from llamafarm.cli.table import PROGRAM
from llamafarm.cli.usage import usage_error
from llamafarm.errors import DiskError, ExitCode, LlamaFarmError, Problem, Stopped, began_as_interrupt

# typer has carried a copy of click inside since 0.2x and used click itself before: its one public class leads to both.
_PARSING_ERROR: Final[type[Any]] = typer.BadParameter.__mro__[2]

_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM})


def run(argv: Sequence[str]) -> int:
    """Run the command line `argv` and return its exit code; never raises but for `SystemExit` of a completion."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # pytest and notebooks put other objects there
            stream.reconfigure(errors="backslashreplace")
    session = Session(tuple(argv))
    try:
        with _ctrl_c() as heard:
            return _run(session, heard)
    except Stopped as stop:
        session.say(stop.message)
        return stop.exit_code
    except KeyboardInterrupt:
        session.say("interrupted")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone, e.g. `| head`. The interpreter flushes stdout once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK


@contextmanager
def _ctrl_c() -> Iterator[list[int]]:
    """Yield what Ctrl-C is added to: a library may catch the interruption, and raise something else in its place."""
    heard: list[int] = []
    apart = threading.current_thread() is not threading.main_thread()
    if apart or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield heard
        return

    def note(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(session: Session, heard: list[int]) -> int:
    try:
        complete_shell()
        with program().make_context(PROGRAM, list(session.argv), obj=session) as context, _libraries(session):
            context.command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as end:
        return end.exit_code
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except LlamaFarmError as error:
        if heard:
            raise KeyboardInterrupt from error
        return _fail(session, error)
    except _PARSING_ERROR as error:
        return _fail(session, usage_error(error, session.argv))
    except BrokenPipeError:
        raise
    except Exception as error:  # the last net: a defect is reported, not shown as a traceback
        if heard or began_as_interrupt(error):
            raise KeyboardInterrupt from error
        if isinstance(error, OSError) and error.errno in (*_DISK, *_DENIED):
            return _fail(session, _disk_error(error))
        return _crash(session, error)
    return ExitCode.OK


def _libraries(session: Session) -> AbstractContextManager[None]:
    """Whether the libraries' warnings are seen: with --debug before the command (or LLAMAFARM_DEBUG=1)."""
    return nullcontext() if session.debug else hushed()


def _disk_error(error: OSError) -> LlamaFarmError:
    where = str(error.filename) if error.filename else ""
    if error.errno in _DENIED:
        hint = "change its owner or its mode, or be the user who made it"
        return DiskError.of("LF-DISK-031", f"not for this user: {error.strerror}", where=where, hint=hint)
    return DiskError.of("LF-DISK-003", f"the disk does not take it: {error.strerror}", where=where)


def _fail(session: Session, error: LlamaFarmError) -> ExitCode:
    if session.debug:
        _traceback(session, error)
    show_problems(session, error.problems)
    return error.exit_code


def _crash(session: Session, error: Exception) -> ExitCode:
    from llamafarm.cli.crash import write_report
    from llamafarm.core.blame import blamed

    if session.debug:
        _traceback(session, error)
    report = write_report(session, error)
    if (plugins := blamed(error, report)) is not None:
        show_problems(session, plugins.problems)
        return plugins.exit_code
    summary = f"{type(error).__name__}: {error}".partition("\n")[0]
    show_problems(session, [Problem("LF-INTERNAL-001", f"unexpected failure: {summary}", hint=report)])
    return ExitCode.UNEXPECTED


def _traceback(session: Session, error: BaseException) -> None:
    from llamafarm.cli.crash import traceback_of

    session.say(traceback_of(session, error))
