"""The one place that runs a command: every way in which it can end becomes lines on stderr and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import typer

from llamafarm.cli.options import typed
from llamafarm.cli.problems import show_problems
from llamafarm.cli.root import PROGRAM, complete_shell, program
from llamafarm.cli.session import Session
from llamafarm.cli.table import COMMANDS, Branch
from llamafarm.errors import ExitCode, LlamaFarmError, Problem, UsageError, nearest

# typer has carried a copy of click inside since 0.2x and used click itself before: its one public class leads to both.
_PARSING_ERROR: Final[type[Any]] = typer.BadParameter.__mro__[2]


def run(argv: Sequence[str]) -> int:
    """Run the command line `argv` and return its exit code; never raises but for `SystemExit` of a completion."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # pytest and notebooks put other objects there
            stream.reconfigure(errors="backslashreplace")
    session = Session(tuple(argv))
    try:
        return _run(session)
    except KeyboardInterrupt:
        session.say("interrupted")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone, e.g. `| head`. The interpreter flushes stdout once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK


def _run(session: Session) -> int:
    try:
        complete_shell()
        with program().make_context(PROGRAM, list(session.argv), obj=session) as context:
            context.command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as end:
        return end.exit_code
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except LlamaFarmError as error:
        return _fail(session, error)
    except _PARSING_ERROR as error:
        return _fail(session, _usage_error(error, session.argv))
    except (KeyboardInterrupt, BrokenPipeError):
        raise
    except Exception as error:  # noqa: BLE001  # the last net: a defect is reported, not shown as a traceback
        return _crash(session, error)
    return ExitCode.OK


def _fail(session: Session, error: LlamaFarmError) -> ExitCode:
    if session.debug:
        _traceback(session, error)
    show_problems(session, error.problems)
    return error.exit_code


def _crash(session: Session, error: Exception) -> ExitCode:
    from llamafarm.cli.crash import write_report

    if session.debug:
        _traceback(session, error)
    summary = f"{type(error).__name__}: {error}".partition("\n")[0]
    problem = Problem("LF-INTERNAL-001", f"unexpected failure: {summary}", hint=write_report(session, error))
    show_problems(session, [problem])
    return ExitCode.UNEXPECTED


def _traceback(session: Session, error: BaseException) -> None:
    from llamafarm.cli.crash import traceback_of

    session.say(traceback_of(session, error))


def _usage_error(error: Any, argv: Sequence[str]) -> UsageError:
    """The parser's error in our form, with the nearest option where one was misspelt."""
    place = error.ctx.command_path if error.ctx else _command_path(argv)
    hint = f"see '{place} --help'"
    if hasattr(error, "option_name") and hasattr(error, "possibilities"):
        options = [name for param in error.ctx.command.params for name in param.opts if name.startswith("--")]
        near = nearest(error.option_name, options)
        return UsageError.of(
            "LF-USAGE-001", f"there is no option {error.option_name!r}", where=place, hint=near or hint
        )
    message = " ".join(error.format_message().split()).rstrip(".")
    if getattr(error, "param", None) is not None and error.message:
        given = [value for _, value in typed(argv, error.param.opts)]
        message = f"{' / '.join(error.param.opts)}: {error.message.rstrip('.')}" + (
            f", got {given[-1]!r}" if given else ""
        )
    return UsageError.of("LF-USAGE-003", f"{message[:1].lower()}{message[1:]}", where=place, hint=hint)


def _command_path(argv: Sequence[str]) -> str:
    """The command that was meant, read from the words typed."""
    words, commands = [PROGRAM], COMMANDS
    for word in argv:
        if word in commands:
            words.append(word)
            entry = commands[word]
            commands = entry.commands if isinstance(entry, Branch) else {}
    return " ".join(words)
