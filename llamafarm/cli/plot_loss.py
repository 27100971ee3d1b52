"""`plot-loss`: the losses of a run as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llamafarm.cli.session import session_of
from llamafarm.errors import DataError, UsageError

LOG = "trainer_log.jsonl"
PICTURE = "training_loss.png"
_KEYS = ("loss", "eval_loss")


def plot_loss(
    context: typer.Context,
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)] = None,
    keys: Annotated[
        list[str] | None, typer.Option("--key", "-k", help="What to draw; may be repeated. Default: loss, eval_loss.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help=f"The file; RUN/{PICTURE} by default.")] = None,
) -> None:
    """Draw what `trainer_log.jsonl` holds, also of a run that is still going on; needs matplotlib."""
    from llamafarm.core._plot import draw_lines

    session = session_of(context)
    if run is None:
        hint = "usage: llamafarm plot-loss RUN"
        raise UsageError.of("LF-USAGE-006", "no run is named", where=context.command_path, hint=hint)
    wanted = keys or _KEYS
    lines = {key: points for key in wanted if (points := _points(run / LOG, key))}
    missing = [key for key in wanted if key not in lines]
    if not lines or (keys and missing):
        message = f"{run / LOG} holds no {' and no '.join(missing)}"
        raise DataError.of("LF-DATA-223", message, hint="name the folder of a run that has logged a step")
    path = output or run / PICTURE
    draw_lines(path, lines, title=run.name, x="step", y="loss")
    session.result(str(path))


def _points(log: Path, key: str) -> list[tuple[float, float]]:
    """Step and value of each line that has the key."""
    try:
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        return [(float(row["current_steps"]), float(row[key])) for row in rows if row.get(key) is not None]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError.of("LF-DATA-223", f"{log} cannot be read: {error}", hint="name the folder of a run") from None
