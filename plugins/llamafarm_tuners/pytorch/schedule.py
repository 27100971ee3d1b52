"""How many steps a run has, and what happens at which of them. Plain arithmetic, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from llamafarm.api import TrainingConfig

NEVER = 999_999
"""Intervals from here on mean: not at all."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The size of a run.

    Attributes:
        rows: Training rows.
        micro_rows: Rows of one micro-step over all devices.
        micro_steps: Micro-steps of an epoch; the last may be smaller.
        accumulation: Micro-steps of an optimizer step; at the end of an epoch what is left makes a step too.
        steps_per_epoch: Optimizer steps of an epoch.
        steps: Optimizer steps of the run.
    """

    rows: int
    micro_rows: int
    micro_steps: int
    accumulation: int
    steps_per_epoch: int
    steps: int

    def epoch(self, step: int) -> float:
        """Epochs done after `step` optimizer steps."""
        return round(step / self.steps_per_epoch, 4)


def plan_sizes(rows: int, training: TrainingConfig, devices: int = 1) -> Sizes:
    """Work out the steps of a run over `rows` rows."""
    micro_rows = training.batch_size * devices
    micro_steps = math.ceil(rows / micro_rows)
    per_epoch = math.ceil(micro_steps / training.gradient_accumulation_steps)
    steps = training.max_steps if training.max_steps > 0 else max(1, math.ceil(training.num_epochs * per_epoch))
    return Sizes(rows, micro_rows, micro_steps, training.gradient_accumulation_steps, per_epoch, steps)


def warmup_steps(training: TrainingConfig, steps: int) -> int:
    """Steps that warm up: `warmup_steps` if above 0, else the share `warmup_ratio`, rounded up."""
    return training.warmup_steps if training.warmup_steps > 0 else math.ceil(training.warmup_ratio * steps)


@dataclass(frozen=True, slots=True)
class Rhythm:
    """At which steps something is due; 0: never."""

    every: int

    def due(self, step: int) -> bool:
        """Whether it happens after `step`."""
        return self.every > 0 and step % self.every == 0

    def before(self, last: int) -> int:
        """How often it happens before the step `last`."""
        return (last - 1) // self.every if self.every > 0 else 0


def rhythm(strategy: Literal["no", "steps", "epoch"], every: int, sizes: Sizes) -> Rhythm:
    """Read `eval_interval` or `save_strategy`/`save_steps`: -1 steps is each epoch, 999999 never."""
    if not happens(strategy, every):
        return Rhythm(0)
    by_epoch = strategy == "epoch" or every < 1
    return Rhythm(sizes.steps_per_epoch if by_epoch else every)


def happens(strategy: str, every: int) -> bool:
    """Whether a strategy with that interval ever takes place."""
    return strategy == "epoch" or (strategy == "steps" and every < NEVER)
