"""`runs`: what runs there are, one of them, and where two of them part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamafarm.cli.figures import number
from llamafarm.cli.session import session_of
from llamafarm.cli.tables import show_table

if TYPE_CHECKING:
    from llamafarm.core.runs import RunSummary

_TOLD = ("strategy", "methods", "base_model", "dataset", "dataset_digest", "seed", "started", "finished", "error")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def list_(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Look here and a few levels below.")] = Path(),
    as_json: Json = False,
) -> None:
    """List runs, the last one first."""
    from llamafarm.core.runs import list_runs

    session, runs = session_of(context), list_runs(folder)
    if as_json:
        session.result_json([_facts(run) for run in runs])
        return
    if not runs:
        session.say(f"no run in {folder}")
        return
    rows = [
        [str(run.manifest.get("run_id")), run.status, str(run.step), number(run.loss) if run.loss is not None else "",
         str(run.folder)]
        for run in runs
    ]  # fmt: skip
    show_table(session, ["RUN", "STATUS", "STEP", "LOSS", "FOLDER"], rows)


def show(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN|last", help="The run's folder.")],
    as_json: Json = False,
) -> None:
    """Show a run: what it is made from, its checkpoints, whether each of them is whole."""
    from llamafarm.core.runs import checkpoints, run_folder, summary

    session, folder = session_of(context), run_folder(run)
    found, kept = summary(folder), checkpoints(folder)
    facts = _facts(found)
    if as_json:
        listed = [{"name": name, "step": step, "damage": wrong or None} for name, step, wrong in kept]
        session.result_json({**facts, "checkpoints": listed, "manifest": dict(found.manifest)})
        return
    manifest = found.manifest
    rows = [[key.replace("_", " "), str(value)] for key, value in facts.items() if value is not None]
    told = [key for key in _TOLD if manifest.get(key)]
    rows += [[key.replace("_", " "), str(manifest[key])] for key in told]
    rows += [["resumed", _resumed(entry)] for entry in manifest.get("resumed", ())]
    rows += [[name, f"step {step}: {wrong or 'whole'}"] for name, step, wrong in kept]
    show_table(session, ["WHAT", "VALUE"], rows)


def diff(
    context: typer.Context,
    one: Annotated[str, typer.Argument(metavar="A", help="A run's folder.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another's.")],
    as_json: Json = False,
) -> None:
    """Show where two runs part: configuration, data, versions, device, then the first step that differs."""
    from llamafarm.core.runs import differences, run_folder

    session = session_of(context)
    parts = list(differences(run_folder(one), run_folder(other)))
    if as_json:
        session.result_json([{"kind": p.kind, "subject": p.subject, "a": p.one, "b": p.other} for p in parts])
    elif parts:
        show_table(session, ["PART", "WHAT", "A", "B"], [[p.kind, p.subject, str(p.one), str(p.other)] for p in parts])
    else:
        session.result("the same: configuration, data, versions, every step, and the weights")


def _resumed(entry: Mapping[str, Any]) -> str:
    """Where and when a run went on; one that was stopped while it loaded has no step."""
    step = entry.get("step")
    return f"{'before its first step' if step is None else f'at step {step}'}, {entry.get('at')}"


def _facts(run: RunSummary) -> dict[str, Any]:
    return {
        "run_id": run.manifest.get("run_id"),
        "status": run.status,
        "step": run.step,
        "loss": run.loss,
        "folder": str(run.folder),
    }
