"""What one invocation knows about its terminal, and the two ways out: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import typer

_ASCII = str.maketrans({"→": ">", "✓": "+", "✗": "x", "·": "-", "…": "~"})


@dataclass(slots=True)
class Session:
    """One invocation of the program.

    Attributes:
        argv: What was typed, without the program's name.
        environment: The process environment.
        debug: Show tracebacks.
        no_color: Colour was switched off by flag or environment.
    """

    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    debug: bool = False
    no_color: bool = False

    def __post_init__(self) -> None:
        self.debug = self.debug or self.environment.get("LLAMAFARM_DEBUG", "0") not in {"", "0"}
        self.no_color = self.no_color or bool(self.environment.get("NO_COLOR"))

    def colour(self, stream: TextIO) -> bool:
        """Whether escape codes for colour may be written to `stream`."""
        if self.no_color:
            return False
        if self.environment.get("FORCE_COLOR"):
            return True
        return stream.isatty() and self.environment.get("TERM") != "dumb"

    def live(self, stream: TextIO) -> bool:
        """Whether lines of `stream` may be redrawn: a real terminal, watched by a person."""
        dumb = self.environment.get("TERM") == "dumb"
        return stream.isatty() and not dumb and not self.environment.get("CI")

    def result(self, text: str = "", *, end: str = "\n") -> None:
        """Write a result to stdout."""
        _write(sys.stdout, text + end, colour=self.colour(sys.stdout))

    def result_lines(self, lines: Iterable[str]) -> None:
        """Write many lines of data to stdout, as they come."""
        for line in lines:
            sys.stdout.write(f"{line}\n")

    def say(self, text: str = "") -> None:
        """Write progress, notices or help to stderr."""
        _write(sys.stderr, text + "\n", colour=self.colour(sys.stderr))

    def result_json(self, value: Any) -> None:
        """Write one JSON document to stdout; figures that are not finite become null."""
        self.result(json.dumps(_finite(value), ensure_ascii=False, indent=2, allow_nan=False))

    def notice(self, message: str) -> None:
        """Say something that the user should know but need not act on."""
        self.say(f"{typer.style('note:', fg='cyan')} {message}")

    def warning(self, message: str) -> None:
        """Say something that the user should look at."""
        self.say(f"{typer.style('warning:', fg='yellow', bold=True)} {message}")


def session_of(context: typer.Context) -> Session:
    """The invocation that `context` belongs to."""
    session = context.find_root().obj
    assert isinstance(session, Session)
    return session


def _write(stream: TextIO, text: str, *, colour: bool) -> None:
    if "utf" not in (stream.encoding or "utf-8").lower():
        text = text.translate(_ASCII)
    typer.echo(text, file=stream, nl=False, color=colour)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, str | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Sequence | set | frozenset):
        return [_finite(item) for item in value]
    return str(value)
