"""Tell the course of a run: events, trainer_log.jsonl, the history of trainer_state.json, and TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from llamafarm.api import RunContext, TrainingConfig
from llamafarm_tuners.pytorch.journal import Journal
from llamafarm_tuners.pytorch.meters import peak_resident_bytes
from llamafarm_tuners.pytorch.schedule import Sizes


@dataclass(slots=True)
class Tally:
    """Sums over steps.

    Attributes:
        loss: Negative log-likelihood of the targets.
        labels: Number of targets.
        tokens: Real tokens, prompts included, padding not.
        seconds: Time spent in training steps.
        steps: How many.
    """

    loss: float = 0.0
    labels: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    steps: int = 0

    def add(self, other: Tally) -> None:
        """Add another sum to this one."""
        self.loss += other.loss
        self.labels += other.labels
        self.tokens += other.tokens
        self.seconds += other.seconds
        self.steps += other.steps

    @property
    def mean_loss(self) -> float:
        """Loss per target."""
        return self.loss / max(self.labels, 1)

    @property
    def tokens_per_second(self) -> float:
        """Real tokens per second of training."""
        return self.tokens / max(self.seconds, 1e-9)


class Report:
    """Where the figures of a run go. On other processes than the main one it only adds up.

    Attributes:
        total: Sums over the whole run.
        active: Whether this is the main process.
        journal: The files.
        metrics: The last evaluation.
    """

    def __init__(
        self,
        folder: Path,
        sizes: Sizes,
        training: TrainingConfig,
        run: RunContext,
        accelerator: Accelerator,
        done: int = 0,
    ) -> None:
        """Start the files, or go on with them after the step `done`."""
        self.total = Tally()
        self.active = accelerator.is_main_process
        self.journal = Journal(folder if self.active else None, sizes.steps)
        self._recent = Tally()
        self._sizes, self._training, self._run, self._device = sizes, training, run, accelerator.device
        self._started = time.perf_counter()
        self._board = _tensorboard(folder, done) if self.active and reports_to_tensorboard(training) else None
        self._said: set[str] = set()
        self.metrics: Mapping[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know."""
        return {
            "total": asdict(self.total),
            "recent": asdict(self._recent),
            "elapsed": self.elapsed,
            "metrics": dict(self.metrics),
            "journal": self.journal.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.total, self._recent = Tally(**state["total"]), Tally(**state["recent"])
        self.metrics = state["metrics"]
        self._started = time.perf_counter() - state["elapsed"]
        self.journal.load_state_dict(state["journal"])

    def step(self, step: int, done: Tally, learning_rate: float, grad_norm: float) -> None:
        """Take in an optimizer step, and log if it is time."""
        self._recent.add(done)
        self.total.add(done)
        first = step == 1 and self._training.logging_first_step
        if first or step % self._training.logging_steps == 0 or step == self._sizes.steps:
            self._log(step, learning_rate, grad_norm)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record an evaluation."""
        epoch, self.metrics = self._sizes.epoch(step), metrics
        self._run.emit("eval", step=step, total_steps=self._sizes.steps, epoch=epoch, **metrics)
        self.journal.log(step, epoch, self.elapsed, self._remaining(step), **metrics)
        self.journal.remember(step=step, epoch=epoch, **metrics)
        self._plot("eval", {name.removeprefix("eval_"): value for name, value in metrics.items()}, step)

    def finish(self, step: int) -> None:
        """Write the last line and close."""
        self.journal.finish(step, self._sizes.epoch(step), self.elapsed, **self._throughput(self.total))
        if self._board:
            self._board.close()

    def survived(self, what: str, reason: str) -> None:
        """Say once for each reason that something could not be written, and that training goes on."""
        if reason not in self._said:
            self._said.add(reason)
            self._run.emit("warning", message=f"{what}: {reason}; training goes on, and what was kept before is intact")

    @property
    def elapsed(self) -> float:
        """Seconds of training, those before an interruption included."""
        return time.perf_counter() - self._started

    def peak_memory(self) -> int:
        """Largest memory use so far: of the accelerator, or of the process on a CPU."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return peak_resident_bytes()

    def _log(self, step: int, learning_rate: float, grad_norm: float) -> None:
        recent, self._recent = self._recent, Tally()
        if not recent.labels:  # every step was left out
            return
        # a step that was left out has no gradient: fp16 overflowed, or the guard skipped it
        norm = {"grad_norm": grad_norm} if math.isfinite(grad_norm) else {}
        epoch, loss, remaining = self._sizes.epoch(step), recent.mean_loss, self._remaining(step)
        self._run.emit(
            "log",
            step=step,
            total_steps=self._sizes.steps,
            epoch=epoch,
            loss=loss,
            learning_rate=learning_rate,
            **norm,
            tokens_per_second=round(recent.tokens_per_second, 1),
            peak_memory_bytes=self.peak_memory(),
            elapsed_s=round(self.elapsed, 3),
            remaining_s=round(remaining, 3),
        )
        values = {"loss": loss, "lr": learning_rate, **norm}
        self.journal.log(step, epoch, self.elapsed, remaining, **values, **self._throughput(recent))
        self.journal.remember(step=step, epoch=epoch, loss=loss, learning_rate=learning_rate, **norm)
        curves = {"loss": loss, "learning_rate": learning_rate, "epoch": epoch, **norm}
        self._plot("train", curves | {"tokens_per_second": recent.tokens_per_second}, step)

    def _throughput(self, tally: Tally) -> dict[str, float]:
        return {
            "throughput": round(tally.tokens_per_second, 1),
            "total_tokens": int(self.total.tokens),
            "peak_memory": self.peak_memory(),
        }

    def _remaining(self, step: int) -> float:
        return self.elapsed / step * max(0, self._sizes.steps - step)

    def _plot(self, group: str, values: Mapping[str, float], step: int) -> None:
        if self.journal.failure:
            self.survived("trainer_log.jsonl cannot be written", self.journal.failure)
        if not self._board:
            return
        try:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)
            self._board.flush()
        except OSError as error:
            self._board = None
            self.survived("TensorBoard's file cannot be written any more", error.strerror or str(error))


def reports_to_tensorboard(training: TrainingConfig) -> bool:
    """Whether it is wanted and installed."""
    return "tensorboard" in training.report_to and find_spec("tensorboard") is not None


def _tensorboard(folder: Path, done: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(log_dir=str(folder / "runs"), purge_step=done + 1 if done else None)
