"""One optimizer step: batches, loss, gradient, update."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers.optimization import get_scheduler

from llamafarm.api import TrainingConfig
from llamafarm.errors import ModelError
from llamafarm_tuners.pytorch._batches import Batch, TokenRow, masked
from llamafarm_tuners.pytorch._evaluate import autocast, evaluate, sum_over_processes
from llamafarm_tuners.pytorch._loss import token_losses
from llamafarm_tuners.pytorch._model import moved
from llamafarm_tuners.pytorch._optimizer import build_optimizer
from llamafarm_tuners.pytorch._report import Tally
from llamafarm_tuners.pytorch._store import Trained
from llamafarm_tuners.pytorch.fast._install import Paths
from llamafarm_tuners.pytorch.guard import FiniteGuard
from llamafarm_tuners.pytorch.schedule import Sizes, warmup_steps
from llamafarm_tuners.pytorch.tasks import by_task


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
        difficulty: A number for each row, if a curriculum orders them.
        tasks: The task of each held-out row; may be empty.
        paths: How batches are made and computed.
    """

    trained: Trained
    rows: Sequence[TokenRow]
    held_out: Sequence[TokenRow]
    training: TrainingConfig
    accelerator: Accelerator
    folder: Path
    difficulty: Sequence[float] | None = None
    tasks: Sequence[str | None] = ()
    paths: Paths = field(default_factory=Paths)


class Stepper:
    """Takes optimizer steps: the model, its optimizer and its schedule."""

    def __init__(self, work: Work, sizes: Sizes) -> None:
        self.work = work
        self.model = _placed(work)
        self.optimizer = work.accelerator.prepare_optimizer(
            build_optimizer(work.trained.model, work.training, work.accelerator.device.type, work.trained.methods)
        )
        self.scheduler = get_scheduler(
            work.training.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=warmup_steps(work.training, sizes.steps),
            num_training_steps=sizes.steps,
        )
        self.guard = FiniteGuard(scaled=work.accelerator.scaler is not None)

    def take(self, step: int, micro_steps: Sequence[Sequence[int]]) -> tuple[Tally, float, float]:
        """Take one step over the rows that this process has in each micro-step.

        The gradient is that of the mean over all targets of the step, however they are spread over micro-batches
        and processes.

        Returns:
            Sums over all processes, the gradient's norm before clipping, and the learning rate that was used.

        Raises:
            NumericError: If loss or gradient is not finite; the weights are then still those of the last step.
        """
        started = time.perf_counter()
        accelerator, paths = self.work.accelerator, self.work.paths
        batches = [_batch(self.work, rows) for rows in micro_steps]
        labels = sum_over_processes(torch.tensor([float(sum(b.labels for b in batches))]), accelerator).item()
        scale = accelerator.num_processes / max(labels, 1.0)
        loss = torch.zeros((), device=accelerator.device)
        for batch in batches:
            waits = nullcontext() if batch is batches[-1] else accelerator.no_sync(self.model)
            with waits:
                with autocast(accelerator):
                    total, _ = token_losses(
                        self.model, batch.to(accelerator.device), selective=paths.selective, head=paths.head
                    )
                accelerator.backward(total * scale)
            loss += total.detach()
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        norm = accelerator.clip_grad_norm_(parameters, self.work.training.max_grad_norm or math.inf)
        sums = torch.tensor([loss.item(), labels / accelerator.num_processes, sum(b.tokens for b in batches)])
        loss_sum, labels, tokens = sum_over_processes(sums.double(), accelerator).tolist()
        self.guard.check(step, loss_sum, float(norm))
        learning_rate = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        return Tally(loss_sum, labels, tokens, time.perf_counter() - started), float(norm), learning_rate

    def evaluate(self) -> dict[str, float]:
        """Measure the held-out rows.

        Raises:
            NumericError: If their loss is not finite.
        """
        training = self.work.training

        def measure(rows: Sequence[TokenRow]) -> dict[str, float]:
            return evaluate(
                self.model,
                rows,
                self.work.accelerator,
                paths=self.work.paths,
                batch_size=training.per_device_eval_batch_size or training.batch_size,
                pad_token_id=_pad(self.work),
                more=training.compute_metrics,
            )

        metrics = (
            by_task(measure, self.work.held_out, self.work.tasks) if self.work.tasks else measure(self.work.held_out)
        )
        self.guard.check_evaluation(metrics["eval_loss"])
        return metrics


def _batch(work: Work, chosen: Sequence[int]) -> Batch:
    multiple = 8 if work.accelerator.device.type == "cuda" else 1
    if chosen:
        return work.paths.batch([work.rows[row] for row in chosen], _pad(work), multiple)
    # The last rows of an epoch may not suffice for all processes; one without any still has to take part in the sum.
    return replace(work.paths.batch([masked(work.rows[0])], _pad(work), multiple), tokens=0)


def _pad(work: Work) -> int:
    return int(work.trained.tokenizer.pad_token_id or 0)


def _placed(work: Work) -> nn.Module:
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
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    # transformers 5.20 renamed it, and warns of the old name
    enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    if inner is not model:
        model.enable_input_require_grads()
