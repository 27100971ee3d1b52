"""Errors of the option parser, in our form: where, what was given, and the nearest option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llamafarm.cli.options import typed
from llamafarm.cli.table import COMMANDS, PROGRAM, Branch
from llamafarm.errors import LlamaFarmError, UsageError, nearest


def usage_error(error: Any, argv: Sequence[str]) -> LlamaFarmError:
    """Translate the parser's exception.

    Args:
        error: A `ClickException` of whichever click typer uses.
        argv: What was typed.
    """
    place = error.ctx.command_path if error.ctx else _command_path(argv)
    hint = f"see '{place} --help'"
    if hasattr(error, "possibilities"):
        options = [name for param in error.ctx.command.params for name in param.opts if name.startswith("--")]
        message = f"there is no option {error.option_name!r}"
        return UsageError.of("LF-USAGE-001", message, where=place, hint=nearest(error.option_name, options) or hint)
    message = " ".join(_message(error, argv).split()).rstrip(".")
    return UsageError.of("LF-USAGE-003", f"{message[:1].lower()}{message[1:]}", where=place, hint=hint)


def _message(error: Any, argv: Sequence[str]) -> str:
    """What is wrong; for a value that cannot be read, with the value."""
    param = getattr(error, "param", None)
    if param is None or not error.message:
        return str(error.format_message())
    given = [f", got {value!r}" for _, value in typed(argv, param.opts)]
    return f"{' / '.join(param.opts)}: {error.message.rstrip('.')}{given[-1] if given else ''}"


def _command_path(argv: Sequence[str]) -> str:
    """The command that was meant, read from the words typed."""
    words, commands = [PROGRAM], COMMANDS
    for word in argv:
        if word in commands:
            words.append(word)
            entry = commands[word]
            commands = entry.commands if isinstance(entry, Branch) else {}
    return " ".join(words)
