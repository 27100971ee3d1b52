"""What is trained on what, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from llamafarm.api import TrainingConfig
from llamafarm.errors import ModelError
from llamafarm.models.inner import transformers_model
from llamafarm_tuners.pytorch._batches import Batch, TokenRow, masked
from llamafarm_tuners.pytorch._methods import Methods
from llamafarm_tuners.pytorch._model import moved
from llamafarm_tuners.pytorch._store import Trained
from llamafarm_tuners.pytorch.fast._install import Paths


@dataclass(frozen=True, slots=True)
class Work:
    """What is trained on what, and how.

    Attributes:
        trained: The model with its methods applied, on the CPU or (quantized) on its device.
        rows: What is learned.
        held_out: What is evaluated; may be empty.
        training: Hyper-parameters.
        accelerator: Device, precision and processes.
        folder: The run directory.
        methods: Those that were applied to the model, while it trains.
        difficulty: A number for each row, if a curriculum orders them.
        tasks: The task of each held-out row; may be empty.
        paths: How batches are made and computed.
        place: Where the example with an index stands: `file:line`.
    """

    trained: Trained
    rows: Sequence[TokenRow]
    held_out: Sequence[TokenRow]
    training: TrainingConfig
    accelerator: Accelerator
    folder: Path
    methods: Methods
    difficulty: Sequence[float] | None = None
    tasks: Sequence[str | None] = ()
    paths: Paths = field(default_factory=Paths)
    place: Callable[[int], str] = str

    @property
    def pad_token_id(self) -> int:
        """What rows are filled up with."""
        return int(self.trained.tokenizer.pad_token_id or 0)

    def batch(self, chosen: Sequence[TokenRow]) -> Batch:
        """Rows as tensors; without any, a row with nothing to learn."""
        multiple = 8 if self.accelerator.device.type == "cuda" else 1
        if chosen:
            return self.paths.batch(chosen, self.pad_token_id, multiple)
        # An epoch's last rows may not suffice for all processes; one without any still has to take part in the sum.
        return replace(self.paths.batch([masked(self.rows[0])], self.pad_token_id, multiple), tokens=0)


def placed(work: Work) -> nn.Module:
    """The model on its device, wrapped if there are several processes."""
    model, accelerator = work.trained.model, work.accelerator
    if work.training.gradient_checkpointing:
        if not getattr(model, "supports_gradient_checkpointing", True):
            raise ModelError.of(
                "LF-MODEL-024",
                "this architecture has no gradient checkpointing",
                hint="set training.gradient_checkpointing: false",
            )
        _recompute_activations(model)
    model.train()
    wrapped: Any = moved(model, accelerator.device)
    if accelerator.num_processes > 1:
        wrapped = accelerator.prepare_model(wrapped)
    module: nn.Module = wrapped
    return module


def _recompute_activations(model: Any) -> None:
    inner = transformers_model(model)
    # transformers 5.20 renamed it, and warns of the old name
    enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    if inner is not model:
        model.enable_input_require_grads()
