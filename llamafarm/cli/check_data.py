"""`check-data`: look for what is wrong with rows, say where, and write a cleaned copy."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamafarm.cli.files import refuse_existing, write_lines
from llamafarm.cli.problems import printable
from llamafarm.cli.session import Session, session_of
from llamafarm.cli.tables import plain_table
from llamafarm.errors import DataError, ExitCode

if TYPE_CHECKING:
    from llamafarm.data.check.check import Checker, Options
    from llamafarm.data.check.findings import Findings

_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}
_SHOWN = 20


def check_data(
    context: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Rows of any kind, checked as one set: files, folders or patterns."),
    ],
    eval_path: Annotated[
        Path | None, typer.Option("--eval", help="Held-out rows: no checked row may be one of them.")
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option("--max-length", min=1, help="Longest row in characters; in tokens with --model."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Measure rows in the tokens of this model.")
    ] = None,
    near_rows: Annotated[
        int, typer.Option("--near-rows", min=0, help="Look for near duplicates among so many first rows; 0: do not.")
    ] = 100_000,
    fix: Annotated[
        Path | None, typer.Option("--fix", metavar="OUT", help="Write a cleaned copy, and say what was changed.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --fix.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail too.")] = False,
    show_all: Annotated[bool, typer.Option("--all", help="Show every finding, not the first 20 of each rule.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check rows for copies, damaged text, missing turns and odd lengths; 3 is returned if errors are found.

    With --fix, what the cleaned copy no longer has does not count; lines that cannot be read do.
    """
    from llamafarm.data.check.check import Checker
    from llamafarm.data.check.findings import Findings, Level
    from llamafarm.data.sources import files_of

    session = session_of(context)
    files = [file for path in inputs for file in files_of(path, session.notice)]
    if fix is not None:
        refuse_existing(fix, overwrite=overwrite)
    findings = Findings(None if show_all else _SHOWN)
    checker = Checker(findings, _options(max_length, model, near_rows))
    if eval_path is not None:
        checker.hold_out(str(eval_path))
    lines = _lines(checker, files, fix)
    if fix is None:
        deque(lines, maxlen=0)
    else:
        write_lines(fix, lines, overwrite=overwrite)
    if as_json:
        session.result_json(_plain(checker, findings, files, fix))
    else:
        _show(session, checker, findings, fix)
    failing = [Level.ERROR, Level.WARNING] if strict else [Level.ERROR]
    if any(findings.left(level, cleaned=fix is not None) for level in failing):
        raise typer.Exit(ExitCode.DATA)


def _options(max_length: int | None, model: str | None, near_rows: int) -> Options:
    from llamafarm.data.check.check import Options

    if model is None:
        return Options(max_length, near_rows=near_rows)
    from llamafarm.api import BaseModelConfig
    from llamafarm.data.check.lengths import tokens
    from llamafarm.models._load import load_tokenizer

    tokenizer = load_tokenizer(BaseModelConfig(huggingface_id=model))
    return Options(max_length, tokens(tokenizer), "tokens", near_rows)


def _lines(checker: Checker, files: list[Path], fix: Path | None) -> Iterator[str]:
    """The rows that are kept, of all files; what concerns all of them is looked at in the end."""
    for path in files:
        yield from checker.lines(str(path))
    checker.finish([str(path) for path in files])
    if fix is not None and not checker.totals.kept:
        raise DataError.of("LF-DATA-062", "no row is left in the cleaned copy", where=str(fix), hint="nothing written")


def _show(session: Session, checker: Checker, findings: Findings, fix: Path | None) -> None:
    from llamafarm.data.check.findings import Level

    for finding in findings.shown:
        label = typer.style(f"{finding.level}:", fg=_COLOURS[finding.level])
        place = f"{finding.where}: " if finding.where else ""
        session.result(f"{printable(place)}{label} {printable(finding.message)} [{finding.rule}]")
    hidden = findings.counts.total() - len(findings.shown)
    if hidden:
        session.result(f"and {hidden:,} more (--all shows them)")
    counts = {level: findings.left(level, cleaned=False) for level in Level}
    totals = ", ".join(f"{count:,} {level}{'s' * (count != 1)}" for level, count in counts.items())
    session.result(f"{checker.totals.rows:,} rows: {totals}")
    for line in plain_table(_summary(checker, findings, cleaned=fix is not None)):
        session.result(f"  {line}")
    if fix is not None:
        lost = findings.counts["unreadable"]
        without = f"; without {lost:,} that cannot be read" if lost else ""
        session.result(f"{fix}: {checker.totals.kept:,} rows, {checker.totals.changed:,} of them mended{without}")


def _summary(checker: Checker, findings: Findings, *, cleaned: bool) -> list[list[str]]:
    from llamafarm.data.check.lengths import percentiles

    rows, verb = [], "were mended or left out" if cleaned else "can be mended or left out by --fix"
    if checker.totals.lengths:
        figures = percentiles(checker.totals.lengths).items()
        rows.append([checker.unit, ", ".join(f"{name} {value:,}" for name, value in figures)])
    for rule, count in findings.counts.items():
        fixed = findings.fixed[rule]
        rows.append([rule, f"{count:,}" + (f" ({fixed:,} {verb})" if fixed else "")])
    return rows or [["nothing", "found"]]


def _plain(checker: Checker, findings: Findings, files: list[Path], fix: Path | None) -> dict[str, Any]:
    from llamafarm.data.check.findings import Level
    from llamafarm.data.check.lengths import percentiles

    totals = checker.totals
    return {
        "files": [str(path) for path in files],
        "rows": totals.rows,
        "usable": len(totals.lengths),
        "unit": checker.unit,
        "lengths": percentiles(totals.lengths) if totals.lengths else None,
        **{f"{level}s": findings.left(level, cleaned=False) for level in Level},
        "counts": dict(findings.counts),
        "mended": {rule: count for rule, count in findings.fixed.items() if count},
        "findings": [
            {"rule": found.rule, "level": found.level, "where": found.where, "message": found.message}
            for found in findings.shown
        ],
        "cleaned": None if fix is None else {"path": str(fix), "rows": totals.kept, "changed": totals.changed},
    }
