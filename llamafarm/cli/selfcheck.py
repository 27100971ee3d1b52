"""`selfcheck`: prove on a strategy's own model and rows that training computes what it should."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from llamafarm.cli.hush import hushed
from llamafarm.cli.session import session_of


def selfcheck(
    context: typer.Context,
    strategy: Annotated[str, typer.Argument(metavar="STRATEGY", help="Name, FILE, or FILE:NAME.", show_default=False)],
    sets: Annotated[list[str] | None, typer.Option("--set", help="Any setting: a.b=c; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare loss and gradients of the first rows with those of transformers and torch alone, without dropout.

    A fault is planted too, and has to be noticed. Writes nothing; ends with exit code 12 if anything differs.
    """
    from llamafarm.core.load import load
    from llamafarm.core.plan import make_plan
    from llamafarm.core.registry import load_registry
    from llamafarm.core.request import Request
    from llamafarm.data.prepare import prepare
    from llamafarm.testing.run_context import RecordingRun

    session, registry = session_of(context), load_registry()
    with TemporaryDirectory() as folder, hushed():  # nothing is written: what output_dir holds is no obstacle
        loaded = load(Request(strategy, sets=(*(sets or ()), f"output_dir={folder}")), registry)
        planned = make_plan(loaded, registry)
        run = RecordingRun(planned.plan.output_dir)
        data = prepare(loaded.tuner_config.dataset, planned.splitter, notice=session.notice)
        found = planned.tuner.selfcheck(planned.plan, data, run)
    paths = next((dict(event.fields) for event in run.events if event.type == "paths"), {})
    if as_json:
        session.result_json({**found, "paths": paths})
        return
    for name, value in paths.items():
        session.result(f"  {name.replace('_', ' ')}: {value}")
    session.result(
        f"{found['rows']} rows, {found['tokens']:,} tokens; relative differences, allowed {found['tolerance']:g}:"
    )
    session.result(f"  loss {found['loss']:.2g}, gradients {found['gradients']:.2g}")
    session.result(f"  planted fault ({found['fault']}): {found['planted_fault']:.2g}, noticed")
