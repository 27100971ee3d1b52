"""Packing as a run does it: what it is given, what it says. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llamafarm.api import Decision, RunContext, RunPlan, TrainingConfig
from llamafarm.data.fit import TokenizedRow
from llamafarm.data.packing import Pack, pack
from llamafarm.data.stored import lengths_of
from llamafarm.errors import Problem
from llamafarm_tuners.pytorch.config import PytorchConfig
from llamafarm_tuners.pytorch.schedule import plan_sizes


def capacity(training: TrainingConfig) -> int:
    """The most tokens of a pack."""
    return training.packing_length or training.max_seq_length


def packed_rows(
    rows: Sequence[TokenizedRow], training: TrainingConfig, run: RunContext, devices: int
) -> Sequence[TokenizedRow | Pack]:
    """The rows in packs if that is wanted, and what it makes of the steps."""
    if not training.packing:
        return rows
    packs = pack(rows, capacity(training), training.seed if training.data_seed is None else training.data_seed)
    tokens = sum(lengths_of(rows))
    sizes = plan_sizes(len(packs), training, devices)
    a_step = training.batch_size * devices * training.gradient_accumulation_steps
    message = (
        f"packed {len(rows):,} rows into {len(packs):,} packs of at most {capacity(training):,} tokens "
        f"({tokens / len(packs) / capacity(training):.0%} full); a step takes {a_step} packs, "
        f"an epoch {sizes.steps_per_epoch:,} steps"
    )
    run.emit("notice", message=message)
    return packs


def check_packing(config: PytorchConfig, plan: RunPlan) -> Iterator[Problem | Decision]:
    """Refuse packs that are too short for rows; say what a step takes."""
    training = config.training
    if not training.packing:
        return
    if capacity(training) < training.max_seq_length:
        message = f"training.packing_length {capacity(training)} is below max_seq_length {training.max_seq_length}"
        where = plan.given.get("training.packing_length", "")
        yield Problem("LF-TRAIN-016", message, where, "a pack has to hold the longest row")
    packs = training.batch_size * training.gradient_accumulation_steps
    reason = f"packing: batch_size counts packs of at most {capacity(training):,} tokens"
    yield Decision("packs per step and device", str(packs), reason)
