"""Show problems: a line each, the place in the file with a caret where there is one, and how many there are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import typer

from llamafarm.cli.redact import redact
from llamafarm.cli.session import Session
from llamafarm.errors import Problem

_PLACE: Final = re.compile(r"(?P<file>.+?):(?P<line>\d+)(?::(?P<column>\d+))?")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_WIDEST: Final = 160


def show_problems(session: Session, problems: Sequence[Problem]) -> None:
    """Write `problems` to stderr, in the order in which they were found."""
    label = typer.style("error:", fg="red", bold=True)
    for problem in problems:
        session.say(f"{label} {printable(redact(str(problem), session.environment))}")
        for line in _excerpt(problem.where):
            session.say(typer.style(printable(redact(line, session.environment)), dim=True))
    if len(problems) > 1:
        session.say(f"{len(problems)} errors")


def printable(text: str) -> str:
    """`text` with control characters spelt out, so that no input drives the terminal."""
    return _CONTROL.sub(lambda match: repr(match.group())[1:-1], text)


def _excerpt(where: str) -> list[str]:
    """The source line and a caret, for places in YAML files; rows of datasets are not shown: they may be private."""
    place = _PLACE.fullmatch(where)
    if place is None or Path(place["file"]).suffix not in {".yaml", ".yml"}:
        return []
    line = _line(Path(place["file"]), int(place["line"]))
    if not line.strip():
        return []
    number = f"{place['line']:>5} | "
    shown = [number + line[:_WIDEST]]
    if place["column"] and int(place["column"]) <= _WIDEST:
        before = re.sub(r"[^\t]", " ", line[: int(place["column"]) - 1])
        shown.append(" " * (len(number) - 2) + "| " + before + "^")
    return shown


def _line(path: Path, number: int) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return next(islice(file, number - 1, None), "").rstrip("\n")
    except OSError:
        return ""
