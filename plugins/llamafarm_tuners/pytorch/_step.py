"""One optimizer step: batches, loss, gradient, update."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers.optimization import get_scheduler

from llamafarm.errors import HardwareError
from llamafarm_tuners.pytorch._batches import Batch, TokenRow
from llamafarm_tuners.pytorch._evaluate import (
    autocast,
    evaluate,
    mean_over_processes,
    most_of_processes,
    sum_over_processes,
)
from llamafarm_tuners.pytorch._loss import token_losses
from llamafarm_tuners.pytorch._memory import (
    Attempt,
    MicroBatch,
    TogetherOutOfMemoryError,
    find_micro_batch,
    is_out_of_memory,
)
from llamafarm_tuners.pytorch._offload import ActivationsAway
from llamafarm_tuners.pytorch._optimizer import Configured, build_optimizer
from llamafarm_tuners.pytorch._remedies import Patient
from llamafarm_tuners.pytorch._report import Tally
from llamafarm_tuners.pytorch._work import Work, placed
from llamafarm_tuners.pytorch.fast._head import precise
from llamafarm_tuners.pytorch.guard import Figures, Guard
from llamafarm_tuners.pytorch.guard.advice import advice
from llamafarm_tuners.pytorch.optim import offloaded
from llamafarm_tuners.pytorch.progress import PROGRESS
from llamafarm_tuners.pytorch.schedule import Sizes, warmup_steps
from llamafarm_tuners.pytorch.tasks import by_task


@dataclass(frozen=True, slots=True)
class Gradient:
    """What a step's forward and backward passes gave; the gradient itself is in the parameters.

    Attributes:
        loss: Sum over the targets of this process, on its device.
        labels: Targets of all processes.
        tokens: Real tokens of this process.
    """

    loss: torch.Tensor
    labels: float
    tokens: int


def _not_saved(_name: str, _step: int) -> None:
    """For steps that are taken to look at them."""


class Stepper:
    """Takes optimizer steps: the model, its optimizer and its schedule.

    Attributes:
        micro: How many rows go through the model at a time.
        attempt: What was there before the step that is being taken.
        configured: The hyper-parameters that the strategy names.
    """

    def __init__(
        self, work: Work, sizes: Sizes, emit: Callable[..., object], save_as: Callable[[str, int], None] = _not_saved
    ) -> None:
        self.work, self.sizes, self._save_as = work, sizes, save_as
        self.model = placed(work)
        self.optimizer = work.accelerator.prepare_optimizer(
            build_optimizer(work.trained.model, work.training, work.accelerator.device.type, work.trained.methods)
        )
        self.scheduler = get_scheduler(
            work.training.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=warmup_steps(work.training, sizes.steps),
            num_training_steps=sizes.steps,
        )
        self.configured = Configured(self.optimizer, self.scheduler)
        training = work.training
        scaled = work.accelerator.scaler is not None
        self.guard = Guard(
            training.guard, scaled=scaled, say=partial(emit, "warning"), ordered=training.curriculum is not None
        )
        self.micro = MicroBatch()
        self.attempt: Attempt | None = None
        self._emit = emit
        away = training.activation_offloading and work.accelerator.device.type == "cuda"
        self._away: AbstractContextManager[Any] = ActivationsAway(self.model) if away else nullcontext()
        self._host = offloaded(training, work.accelerator.device.type)
        if away or self._host:
            emit("offload", activations=away, optimizer=self._host)

    def take(self, step: int, micro_steps: Sequence[Sequence[int]]) -> tuple[Tally, float, float]:
        """Take one step over the rows that this process has in each micro-step.

        The gradient is that of the mean over all targets of the step, however they are spread over micro-batches
        and processes. When the memory does not suffice, the step is taken again with half as many rows at a time.

        Returns:
            Sums over all processes, the gradient's norm before clipping, and the learning rate that was used.

        Raises:
            Offence: If loss or gradient is not in order; the weights are then still those of the last step.
        """
        while True:
            self.attempt = Attempt(self.work.accelerator, self.optimizer)
            try:
                return self._take(step, micro_steps)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self._takes_less(step, micro_steps, error):
                    raise

    def compute_plainly(self) -> None:
        """Leave the faster ways of computing."""
        self.work = replace(self.work, paths=self.work.paths.left())

    def patient(self) -> Patient:
        """What remedies are applied to."""
        work = self.work
        factor = work.training.guard.learning_rate_factor
        return Patient(
            work.trained.model, self.optimizer, self.scheduler, work.accelerator, self.compute_plainly, factor
        )

    def leave_out(self) -> tuple[Tally, float, float]:
        """Go on in the schedule without a step."""
        learning_rate = float(self.scheduler.get_last_lr()[0])
        self.optimizer.zero_grad()
        self.scheduler.step()
        return Tally(), math.nan, learning_rate

    def gradient(self, batches: Sequence[Batch], first: Callable[[], None] | None = None) -> Gradient:
        """Forward and backward passes of a step, after `first`.

        Several processes add up their gradients once each has its own: so all are told where one has not enough
        memory, and none waits for it.

        Raises:
            TogetherOutOfMemoryError: If one of several processes has not enough memory.
        """
        accelerator = self.work.accelerator
        own = torch.tensor([float(sum(batch.labels for batch in batches))], dtype=torch.float64)
        labels = sum_over_processes(own, accelerator).item()
        if accelerator.num_processes == 1:
            return self._own_gradient(batches, labels, first)
        done, reason = None, ""
        try:
            done = self._own_gradient(batches, labels, first)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
            traceback.clear_frames(error.__traceback__)
        failed = int(sum_over_processes(torch.tensor([float(done is None)]), accelerator).item())
        if done is None or failed:
            raise TogetherOutOfMemoryError(reason or f"in {failed} of {accelerator.num_processes} processes")
        mean_over_processes(self.model, accelerator)
        return done

    def _own_gradient(self, batches: Sequence[Batch], labels: float, first: Callable[[], None] | None) -> Gradient:
        """The part of this process in that of all `labels`."""
        accelerator, paths = self.work.accelerator, self.work.paths
        if first is not None:
            first()
        scale = accelerator.num_processes / max(labels, 1.0)
        loss = torch.zeros((), dtype=precise(accelerator.device), device=accelerator.device)
        for batch in batches:
            PROGRESS.sign()
            with accelerator.no_sync(self.model):
                with autocast(accelerator), self._away:
                    there = batch.to(accelerator.device, pin=self.work.training.dataloader_pin_memory)
                    total, _ = token_losses(self.model, there, selective=paths.selective, head=paths.head)
                penalty = self.work.methods.penalty() if batch is batches[-1] else None
                accelerator.backward(total * scale if penalty is None else total * scale + penalty)
            loss += total.detach()
        return Gradient(loss, labels, sum(b.tokens for b in batches))

    def batches(self, micro_steps: Sequence[Sequence[int]]) -> list[Batch]:
        """A step's rows as tensors, in the parts that go through the model one after the other."""
        return [self.work.batch([self.work.rows[row] for row in part]) for part in self.micro.parts(micro_steps)]

    def try_sizes(self, rows: Sequence[int]) -> None:
        """Find out how many of a step's rows the memory takes at a time, with the longest.

        Raises:
            HardwareError: If not even one.
        """

        def compute(chosen: Sequence[int], reserve: Callable[[], None]) -> None:
            self.gradient([self.work.batch([self.work.rows[row] for row in chosen])], reserve)

        found = find_micro_batch(
            self.work.trained.model, self.work.accelerator.device, rows, compute, 0 if self._host else 2
        )
        if found is None:
            longest = len(self.work.rows[rows[0]].input_ids)
            message = f"not even one row of {longest:,} tokens fits into the memory"
            raise HardwareError.of("LF-HARDWARE-011", message, hint=advice("out-of-memory"))
        self.micro.limit = found

    def _take(self, step: int, micro_steps: Sequence[Sequence[int]]) -> tuple[Tally, float, float]:
        started, accelerator = time.perf_counter(), self.work.accelerator
        done = self.gradient(self.batches(micro_steps))
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        norm = accelerator.clip_grad_norm_(parameters, self.work.training.max_grad_norm or math.inf)
        own = [done.loss.item(), done.labels / accelerator.num_processes, done.tokens]
        sums = torch.tensor(own, dtype=torch.float64)
        loss_sum, labels, tokens = sum_over_processes(sums, accelerator).tolist()
        learning_rate = float(self.scheduler.get_last_lr()[0])
        figures = Figures(loss_sum, labels, float(norm), learning_rate, self.scheduler.base_lrs[0])
        if not self.guard.check(step, figures):
            return self.leave_out()
        assert self.attempt is not None
        self.attempt.update()
        self.optimizer.step()
        skipped = accelerator.optimizer_step_was_skipped
        if not skipped:
            self.work.methods.stepped(step, self.sizes.steps, self.optimizer, lambda name: self._save_as(name, step))
        self.optimizer.zero_grad()
        if not skipped:
            self.scheduler.step()
        return Tally(loss_sum, labels, tokens, time.perf_counter() - started), figures.grad_norm, learning_rate

    def _takes_less(self, step: int, micro_steps: Sequence[Sequence[int]], error: Exception) -> bool:
        """Whether the step can be taken again with fewer rows at a time; then everything is as before it."""
        accelerator, attempt = self.work.accelerator, self.attempt
        # in the middle of an update the other processes cannot be told: theirs may be made already
        all_know = accelerator.num_processes == 1 or isinstance(error, TogetherOutOfMemoryError)
        assert attempt is not None
        if not all_know or self.work.training.on_out_of_memory != "halve":
            return False
        rows = most_of_processes(max(len(part) for part in self.micro.parts(micro_steps)), accelerator)
        if rows <= 1 or not attempt.undo(error):
            return False
        self.micro.halve(rows)
        message = f"step {step}: out of memory with {rows} rows at a time: {self.micro.limit} from now on; "
        self._emit("micro_batch", step=step, rows=self.micro.limit, was=rows)
        self._emit(
            "warning",
            message=message + "the rows of a step, and what they weigh, stay the same",
            kind="out-of-memory",
            step=step,
            rows=self.micro.limit,
            was=rows,
        )
        return True

    def _evaluates_fewer(self, rows: int) -> int:
        """How many rows to evaluate at a time after `rows` were too many; 0: the run is to end."""
        if self.work.training.on_out_of_memory != "halve" or not self.micro.halve_eval(rows):
            return 0
        fewer = self.micro.eval_limit or 0
        message = (
            f"evaluation: out of memory with {rows} rows at a time: {fewer} from now on; the figures stay the same"
        )
        self._emit("warning", message=message, kind="out-of-memory", rows=fewer, was=rows)
        return fewer

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
                batch_size=self.micro.eval_rows(training.per_device_eval_batch_size or training.batch_size),
                fewer=self._evaluates_fewer,
                pad_token_id=self.work.pad_token_id,
                more=training.compute_metrics,
            )

        metrics = (
            by_task(measure, self.work.held_out, self.work.tasks) if self.work.tasks else measure(self.work.held_out)
        )
        self.guard.check_evaluation(metrics["eval_loss"])
        return metrics
