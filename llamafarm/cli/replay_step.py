"""`replay-step`: take the step that broke again, and see where its first value goes wrong."""

from __future__ import annotations

from typing import Annotated

import typer

from llamafarm.cli.hush import hushed
from llamafarm.cli.session import session_of
from llamafarm.errors import NumericError


def replay_step(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN|last", help="The run's folder.", show_default=False)],
    step: Annotated[int, typer.Argument(min=1, help="The optimizer step that broke.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compute a broken step again, with the weights, rows and random numbers that it had.

    Ends with exit code 6 if a value is not finite again, and names the first module; with 0 if all are finite.
    Writes nothing.
    """
    from llamafarm.core.registry import load_registry
    from llamafarm.core.replay import replay_step as replay

    session = session_of(context)
    with hushed():
        found = replay(run, step, load_registry())
    rows = [place for part in found.examples for place in part]
    if as_json:
        session.result_json(
            {"step": step, "reproduced": found.now is not None, "first_bad": found.now, "before": found.before,
             "loss": found.loss, "loss_before": found.loss_before, "why": found.why, "rows": rows}
        )  # fmt: skip
    elif found.now is None:
        session.result(f"step {step} is finite now; it broke because {found.why}")
        if found.loss is not None:
            was = "as it was" if found.loss == found.loss_before else f"it was {found.loss_before}"
            session.result(f"its loss over all targets is {found.loss}; {was}")
    if found.now is not None:
        message = f"step {step} breaks again: the first value that is not finite is {found.now} (it broke: {found.why})"
        hint = f"its rows: {', '.join(rows[:8])}{' …' if len(rows) > 8 else ''}"
        raise NumericError.of("LF-NUMERIC-013", message, where=run, hint=hint)
