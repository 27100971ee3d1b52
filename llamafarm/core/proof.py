"""Prove on a strategy itself that a resumed run ends as one that was never stopped, and that a run can be repeated."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from llamafarm.api.values import Event, ResumePoint
from llamafarm.core.load import load
from llamafarm.core.plan import make_plan
from llamafarm.core.record import OWN, manifest_of
from llamafarm.core.registry import Registry
from llamafarm.core.request import Request
from llamafarm.core.run import train
from llamafarm.core.runs import Part, differences, log_lines
from llamafarm.errors import RunDirectoryError, Stopped

Listener = Callable[[Event], None]

_SHORT = (
    "training.logging_steps=1",
    "training.save_strategy=no",
    "training.early_stopping=false",
    "training.report_to=[none]",
    "training.push_to_hub=false",
    "training.resume_from_checkpoint=null",
    "evaluation.exact_match=false",
    "overwrite_output_dir=false",
)

_AGAIN = ("training.resume_from_checkpoint=null", "training.push_to_hub=false", "overwrite_output_dir=false")


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of it.

    Attributes:
        steps: Optimizer steps of both runs.
        stopped_at: The step after which the second was stopped.
        compared: Figures of steps that were compared.
        parts: Where the two runs differ; empty: nowhere, to the last bit.
    """

    steps: int
    stopped_at: int
    compared: int
    parts: tuple[Part, ...]


def verify_resume(request: Request, registry: Registry, folder: Path, steps: int, listener: Listener) -> Proof:
    """Train some steps without interruption, and again stopped in the middle and resumed; compare the two.

    The second is stopped as a scheduler would, by SIGTERM. It needs the main thread.

    Args:
        request: The strategy.
        registry: Components.
        folder: Where both runs write.
        steps: Optimizer steps, at least 2.
        listener: Is told each event of the runs.

    Raises:
        LlamaFarmError: If the strategy cannot be trained.
    """
    straight, stopped, middle = folder / "straight", folder / "resumed", steps // 2
    short = (*request.sets, f"training.max_steps={steps}", *_SHORT)
    _train(replace(request, sets=(*short, f"output_dir={straight}")), registry, listener)

    def stop(event: Event) -> None:
        listener(event)
        if event.type == "log" and event.fields["step"] == middle:
            signal.raise_signal(signal.SIGTERM)

    again = replace(request, sets=(*short, f"output_dir={stopped}"))
    try:
        _train(again, registry, stop)
    except Stopped:
        _train(again, registry, listener, ResumePoint())
    lines = log_lines(straight)
    return Proof(steps, middle, sum("loss" in line for line in lines), tuple(differences(straight, stopped)))


def reproduce(run: Path, registry: Registry, folder: Path, listener: Listener) -> tuple[Part, ...]:
    """Carry out a finished run again, from its resolved strategy, in another folder; say where the two differ.

    Args:
        run: Its directory.
        registry: Components.
        folder: Where the second run writes; it stays.
        listener: Is told each event of it.

    Returns:
        What differs, first things first; empty: nothing, to the last bit.

    Raises:
        LlamaFarmError: If there is nothing to compare with, or it cannot be trained.
    """
    facts = manifest_of(run) or {}
    if facts.get("status") != "completed":
        message = f"the run is {facts.get('status', 'unknown')}, not completed: there is no end to compare with"
        hint = f"finish it first: llamafarm train --resume {run}"
        raise RunDirectoryError.of("LF-RUN-015", message, where=str(run), hint=hint)
    again = Request(str(run / OWN / "resolved.yaml"), sets=(*_AGAIN, f"output_dir={folder}"))
    _train(again, registry, listener)
    return tuple(differences(run, folder))


def _train(request: Request, registry: Registry, listener: Listener, resume: ResumePoint | None = None) -> None:
    loaded = load(request, registry)
    train(loaded, make_plan(loaded, registry, resume), registry, listener)
