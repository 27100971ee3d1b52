"""`estimate`: whether a run fits, how long it takes, what it writes; from the model's sizes alone, without torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamafarm.cli.figures import duration, gib, share
from llamafarm.cli.options import BaseModel, Dataset, Sets, flags_from
from llamafarm.cli.session import Session, session_of
from llamafarm.cli.tables import plain_table
from llamafarm.errors import UsageError

if TYPE_CHECKING:
    from llamafarm.core.estimate import Advice, Change, Estimate


def estimate(
    context: typer.Context,
    strategy: Annotated[
        str | None, typer.Argument(metavar="[STRATEGY]", help="Name, FILE, or FILE:NAME.", show_default=False)
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", help="A GPU by name, e.g. a100-80g, instead of this machine; `list` shows all."),
    ] = None,
    strategy_option: Annotated[
        str | None,
        typer.Option("--strategy", "-s", "--strategy-file", "--config", "-c", help="The same as STRATEGY."),
    ] = None,
    model: BaseModel = None,
    dataset: Dataset = None,
    eval_dataset: Annotated[Path | None, typer.Option("--eval-dataset", help="Held-out rows.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="lora, full, or another installed method.")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", "--num-epochs", help="Passes over the rows.")] = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", help="Optimizer steps, instead of epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Rows per device and step.")] = None,
    sets: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what training would need: memory by term, time, disk; and what to change if it does not fit.

    Nothing is loaded, written or sent: the model's config.json and a few rows are looked at.
    """
    from llamafarm.cli.train import FLAGS
    from llamafarm.core.estimate import advise
    from llamafarm.core.registry import load_registry
    from llamafarm.core.request import Request

    session = session_of(context)
    if gpu == "list":
        _list(session, as_json=as_json)
        return
    from llamafarm.estimate.gpus import gpu as named

    if strategy and strategy_option and strategy != strategy_option:
        raise UsageError.of("LF-USAGE-004", f"{strategy} and {strategy_option} are two strategies", hint="name one")
    chosen = strategy or strategy_option
    if chosen is None and not model:
        hint = "give STRATEGY, or --model"
        raise UsageError.of("LF-USAGE-006", "no strategy is named to estimate", where=context.command_path, hint=hint)
    device = named(gpu).device if gpu else None
    advice = advise(Request(chosen, flags_from(context, FLAGS), tuple(sets or ())), load_registry(), device)
    if as_json:
        session.result_json(_json(advice))
        return
    for line in _lines(advice):
        session.result(line)
    for note in advice.estimate.notes:
        session.notice(note)


def one_line(found: Estimate) -> str:
    """`memory 1.2 GiB of 20.1 GiB (fits) · time 3m to 18m · disk 12 MiB`."""
    room = f" of {gib(found.available)}" if found.available else ""
    parts = [f"memory {gib(found.needed)}{room} ({_verdict(found)})"]
    if time := _time(found):
        parts.append(f"time {time}")
    return " · ".join([*parts, f"disk {gib(found.costs.disk)}"])


def _lines(advice: Advice) -> Iterator[str]:
    found = advice.estimate
    costs = found.costs
    low, high = found.needed * (1 - found.margin), found.needed * (1 + found.margin)
    room = f"of {gib(found.available)} on {found.device.name}" if found.available else f"on {found.device.name}"
    rows = [["memory", f"{gib(found.needed)}  ({gib(low)} to {gib(high)})  {room}: {_verdict(found)}"]]
    terms = [f"{name} {gib(value)}" for name, value in costs.memory.items() if value >= 2**20 or len(costs.memory) < 3]
    beside = [f"beside {gib(costs.beside)}"] if costs.beside else []
    rows.append(["", " · ".join([*terms, *beside])])
    rows.append(["time", _time(found) or "nothing is known of this device's speed"])
    rows[-1][1] += f"  ({costs.steps:,} steps, {costs.tokens:,.0f} tokens)"
    rows.append(["disk", gib(costs.disk)])
    part = share(costs.trained / costs.parameters)
    rows.append(["trained", f"{costs.trained:,} of {costs.parameters:,} parameters ({part})"])
    rows.append(["computed", costs.path])
    rows.append(["batch", _batch(advice)])
    rows.append(["based on", _basis(found)])
    yield from plain_table(rows)
    if found.fits is False:
        yield ""
        yield from _changes(advice)


def _verdict(found: Estimate) -> str:
    if found.fits is None:
        return "not known whether it fits"
    if found.fits:
        return "fits"
    return "may fit" if found.may_fit else "does not fit"


def _time(found: Estimate) -> str:
    if found.seconds is None:
        return ""
    low, high = (duration(bound) for bound in found.seconds)
    if found.seconds[1] < 1:
        return "less than 1s"
    return low if low == high else f"{low} to {high}"


def _batch(advice: Advice) -> str:
    size = advice.estimate.costs.micro_batch
    if not advice.estimate.available:
        return f"batch_size {size}"
    if not advice.largest_batch:
        return f"batch_size {size}; not even 1 is sure to fit as it is"
    return f"batch_size {size}; the largest that surely fits is {advice.largest_batch:,}"


def _basis(found: Estimate) -> str:
    if not found.calibration.runs:
        return "the model's sizes; no earlier run like it on this device"
    runs, off = found.calibration.runs, found.calibration.last_off
    word = "right" if abs(off) < 0.005 else f"{abs(off):.0%} too {'high' if off > 0 else 'low'}".replace("%", " %")
    return f"{runs} earlier run{'s' if runs > 1 else ''} like it on this device; the last estimate was {word}"


def _changes(advice: Advice) -> Iterator[str]:
    if not advice.changes:
        available = gib(advice.estimate.available)
        yield f"no setting that was tried is sure to fit: the least needs {gib(advice.least)} of {available}"
        return
    yield "it fits with"
    yield from (f"  {_flags(change)}  ({gib(change.estimate.needed)})" for change in advice.changes)


def _flags(change: Change) -> str:
    return " ".join(f"--set {shlex.quote(text)}" for text in change.sets)


def _json(advice: Advice) -> dict[str, Any]:
    device = advice.estimate.device
    return {
        "device": {"type": device.type, "name": device.name, "memory_bytes": device.memory_bytes},
        **advice.estimate.as_json(),
        "largest_batch_size": advice.largest_batch,
        "changes": [
            {"sets": list(change.sets), "needed_bytes": round(change.estimate.needed)} for change in advice.changes
        ],
    }


def _list(session: Session, *, as_json: bool) -> None:
    from llamafarm.estimate.gpus import GPUS

    if as_json:
        session.result_json({name: {"name": gpu.name, "gib": gpu.gib} for name, gpu in GPUS.items()})
        return
    rows = [["NAME", "PRODUCT", "GIB", "TFLOP/S", "GB/S"]]
    rows += [[key, gpu.name, f"{gpu.gib:g}", f"{gpu.teraflops:g}", f"{gpu.bandwidth:g}"] for key, gpu in GPUS.items()]
    for line in plain_table(rows):
        session.result(line)
