"""`reproduce`: carry out a run again, and say whether it ends the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from llamafarm.cli.progress import show_progress
from llamafarm.cli.session import session_of
from llamafarm.errors import QualityError


def reproduce(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN|last", help="The folder of a finished run.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the second run writes; RUN-reproduced by default.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and what came of it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Carry out a finished run again from its resolved strategy, and compare: data, versions, each step, the weights.

    The second run stays, to be looked at with `runs diff`.
    """
    from llamafarm.core.proof import reproduce as carry_out_again
    from llamafarm.core.registry import load_registry
    from llamafarm.core.runs import run_folder

    session = session_of(context)
    before = run_folder(run)
    after = output or before.with_name(f"{Path(os.path.realpath(before)).name}-reproduced")
    with show_progress(session, quiet=quiet or as_json) as listener:
        parts = carry_out_again(before, load_registry(), after, listener)
    if as_json:
        told = [{"kind": part.kind, "subject": part.subject, "a": part.one, "b": part.other} for part in parts]
        session.result_json({"exact": not parts, "folder": str(after), "differences": told})
    if parts:
        first = parts[0]
        message = f"the run is not the same again: {first.kind}: {first.subject} was {first.one} and is {first.other}"
        hint = f"llamafarm runs diff {before} {after} shows all {len(parts)} differences"
        raise QualityError.of("LF-QUALITY-051", message, where=str(after), hint=hint)
    if not as_json:
        session.result(f"{typer.style('✓', fg='green')} exact: {after} has the same losses and weights, bit by bit")
