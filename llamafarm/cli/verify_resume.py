"""`verify-resume`: prove on the user's own strategy that a resumed run is exact."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from llamafarm.cli.progress import show_progress
from llamafarm.cli.session import session_of
from llamafarm.errors import QualityError


def verify_resume(
    context: typer.Context,
    strategy: Annotated[str, typer.Argument(metavar="STRATEGY", help="Name, FILE, or FILE:NAME.")],
    steps: Annotated[int, typer.Option("--steps", min=2, help="Optimizer steps of each run.")] = 6,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Any setting: a.b=c; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a few steps straight, and again stopped by SIGTERM and resumed; compare weights and losses to the last bit.

    Both runs are made in a temporary folder that is removed at the end.
    """
    from llamafarm.core.proof import verify_resume as verify
    from llamafarm.core.registry import load_registry
    from llamafarm.core.request import Request

    session = session_of(context)
    with tempfile.TemporaryDirectory(prefix="llamafarm-") as folder, show_progress(session, quiet=True) as listener:
        request = Request(strategy, sets=tuple(sets or ()))
        proof = verify(request, load_registry(), Path(folder), steps, listener)
    if as_json:
        parts = [{"kind": part.kind, "subject": part.subject} for part in proof.parts]
        session.result_json({"exact": not parts, "steps": steps, "stopped_at": proof.stopped_at, "differences": parts})
    if proof.parts:
        first = proof.parts[0]
        message = f"resuming is not exact: {first.subject} was {first.one} straight and {first.other} resumed"
        hint = "set a seed, and look for operations that are not deterministic on this device"
        raise QualityError.of("LF-QUALITY-050", message, where=strategy, hint=hint)
    if not as_json:
        ends = f"{steps} steps straight, and {proof.stopped_at} + {steps - proof.stopped_at} steps resumed"
        session.result(f"{typer.style('✓', fg='green')} exact: {ends} end in the same weights and losses, bit by bit")
