"""What passes between the host and a fine-tuner when a run's costs are worked out before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Workload:
    """What a run computes on.

    Attributes:
        model_config: The base model's `config.json`.
        lengths: Tokens of a sample of the training rows, not cut yet; never empty.
        rows: Training rows.
        held_out: Rows that are evaluated.
        learned: Share of the tokens that are learned, 0 to 1.
        stored_bits: Bits of a weight in the model's files.
    """

    model_config: Mapping[str, Any]
    lengths: tuple[int, ...]
    rows: int
    held_out: int = 0
    learned: float = 1.0
    stored_bits: int = 32


@dataclass(frozen=True, slots=True)
class Costs:
    """What a run needs, as its fine-tuner works it out.

    Attributes:
        memory: Term → bytes at the moment when most is in use. The sum is what the run's `peak_memory_bytes` measures.
        beside: Bytes that the device must have besides: what no counter of the fine-tuner shows.
        flops: Floating-point operations of the whole run, multiplications and additions apart.
        steps: Optimizer steps.
        tokens: Tokens that are trained on in the whole run.
        disk: Bytes that the run writes and keeps.
        trained: Parameters that are trained.
        parameters: All parameters, adapters included.
        path: How it is computed: runs of one path have the same errors of estimation.
        micro_batch: Rows (or packs) of a micro-batch.
        notes: What was assumed, and what a user should know.
    """

    memory: Mapping[str, float]
    beside: float
    flops: float
    steps: int
    tokens: float
    disk: float
    trained: int
    parameters: int
    path: str
    micro_batch: int
    notes: tuple[str, ...] = field(default=())

    @property
    def peak(self) -> float:
        """Bytes of all terms."""
        return sum(self.memory.values())

    @property
    def fixed(self) -> float:
        """Bytes of the term `process`, which every run on the device has."""
        return self.memory.get("process", 0.0)
