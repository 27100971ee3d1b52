"""Look into the step that broke, and keep it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamafarm.data.packing import Pack
from llamafarm_tuners.pytorch._batches import Batch
from llamafarm_tuners.pytorch._broken import FirstBad, first_bad, write_broken
from llamafarm_tuners.pytorch._memory import is_out_of_memory
from llamafarm_tuners.pytorch._random import random_state
from llamafarm_tuners.pytorch._step import Stepper
from llamafarm_tuners.pytorch.guard import Offence


def keep_broken(
    stepper: Stepper, offence: Offence, micro_steps: Sequence[Sequence[int]], folder: Path, facts: Mapping[str, Any]
) -> FirstBad | None:
    """Take the gradient again with every module watched, and write the step down. All processes call it.

    Args:
        stepper: Which took it.
        offence: What broke.
        micro_steps: Its rows.
        folder: The record.
        facts: What else is written: the remedies that were applied, the format of the base.

    Returns:
        The first value that is not finite, if there was one again.

    Raises:
        DiskError: If it cannot be written.
    """
    work, attempt = stepper.work, stepper.attempt
    assert attempt is not None, "a step broke that was not taken"
    attempt.undo(offence)
    generators = random_state(work.accelerator.device)
    bad = look_into(stepper, stepper.batches(micro_steps))
    attempt.undo(offence)
    rows = stepper.micro.parts(micro_steps)
    figures: dict[str, Any] = {name: plain(value) for name, value in offence.figures._asdict().items()}
    examples = [[_place(stepper, row) for row in part] for part in rows]
    facts = {**figures, **facts} | {"step": offence.step, "id": offence.id, "kind": offence.kind, "why": offence.what}
    facts |= {"first_bad": str(bad) if bad else None, "rows": rows, "examples": examples}
    rank = work.accelerator.process_index
    target = folder.with_name(f"{folder.name}-rank-{rank}") if rank else folder
    parts = [[work.rows[row] for row in part] for part in rows]
    write_broken(target, work.trained.model, parts, generators, facts, work.methods.state_dict())
    return bad


def look_into(stepper: Stepper, batches: Sequence[Batch]) -> FirstBad | None:
    """The first value of a step's forward and backward passes that is not finite."""
    try:
        return first_bad(stepper.work.trained.model, lambda: float(stepper.gradient(batches).loss))
    except (RuntimeError, MemoryError) as error:  # the hooks hold a little more than the step did
        if not is_out_of_memory(error):
            raise
        return None


def _place(stepper: Stepper, row: int) -> str:
    """Where a row's example stands; a pack has many."""
    found: Any = stepper.work.rows[row]
    return f"pack {row}" if isinstance(found, Pack) else stepper.work.place(found.example)


def plain(value: float) -> float | str:
    """A figure as JSON has it: what is not finite in words."""
    return value if math.isfinite(value) else repr(value)
