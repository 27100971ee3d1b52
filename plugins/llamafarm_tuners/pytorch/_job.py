"""A run in progress, and where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from llamafarm.api import PreparedData, RunContext, RunPlan
from llamafarm_tuners.pytorch.config import PytorchConfig
from llamafarm_tuners.pytorch.precision import Autocast, DType


@dataclass(slots=True)
class Fit:
    """A run in progress.

    Attributes:
        config: The fine-tuner's configuration.
        plan: What was decided.
        data: What is learned and what is held out.
        run: Receives events; silent on all processes but one.
        accelerator: Device, precision and processes.
        results: Figures for eval_results.json that come from answering questions.
        identity: What the result is made from.
        kept: What the methods kept in the state that the run goes on from; None: the training begins.
        begun: The format of the base in that state, where it was not asked for.
    """

    config: PytorchConfig
    plan: RunPlan
    data: PreparedData
    run: RunContext
    accelerator: Accelerator
    results: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)
    kept: Mapping[str, Any] | None = None
    begun: DType | None = None


def accelerator_for(plan: RunPlan, mixed: Autocast) -> Accelerator:
    """Device, precision and processes of a run."""
    # accelerate keeps its state per process; a second run in one process must not inherit the first one's precision
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001  # it offers no other way
    buffers = DistributedDataParallelKwargs(broadcast_buffers=False)  # all make the same ones: no wait for each other
    return Accelerator(cpu=plan.device.type == "cpu", mixed_precision=mixed, kwargs_handlers=[buffers])


@dataclass(frozen=True, slots=True)
class Silent:
    """The run as processes other than the main one see it."""

    run: RunContext

    @property
    def run_id(self) -> str:
        return self.run.run_id

    @property
    def output_dir(self) -> Path:
        return self.run.output_dir

    @property
    def seed(self) -> int:
        return self.run.seed

    @property
    def stop_requested(self) -> bool:
        return self.run.stop_requested

    def take_checkpoint_request(self) -> bool:
        """The main process is asked."""
        return False

    def emit(self, type: str, /, **fields: Any) -> None:  # noqa: A002  # the contract's word
        """Say nothing: the main process does."""
