"""The training loop: from rows to trained weights, in one process or several, from the start or from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch

from llamafarm.api import ResumePoint, RunContext
from llamafarm.errors import DiskError
from llamafarm.models.checkpoint import read_manifest
from llamafarm_tuners.pytorch._batches import epoch_order, micro_batches, steps_of
from llamafarm_tuners.pytorch._checkpoints import BEST, Checkpoints, newest, restore_weights
from llamafarm_tuners.pytorch._evaluate import sum_over_processes
from llamafarm_tuners.pytorch._report import Report
from llamafarm_tuners.pytorch._state import Engine, Stateful, TrainingState, read_state, restore, snapshot
from llamafarm_tuners.pytorch._step import Stepper, Work
from llamafarm_tuners.pytorch.best import BestSoFar
from llamafarm_tuners.pytorch.identity import differences
from llamafarm_tuners.pytorch.journal import trainer_state
from llamafarm_tuners.pytorch.schedule import Sizes, plan_sizes, rhythm


@dataclass(frozen=True, slots=True)
class Course:
    """How a training went.

    Attributes:
        step: The last optimizer step.
        sizes: What was planned.
        report: Its figures.
        best: The best evaluation.
        metrics: Evaluation of the model that is left in memory: the last, or the best if that was loaded.
    """

    step: int
    sizes: Sizes
    report: Report
    best: BestSoFar
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a run goes on from, and what it is.

    Attributes:
        point: What was asked for; None starts anew.
        identity: What the checkpoints are made from.
    """

    point: ResumePoint | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)


def train(work: Work, run: RunContext, continuation: Continuation | None = None) -> Course:
    """Train the model in place, writing checkpoints and logs.

    Args:
        work: What to do.
        run: Receives events; silent on all processes but one.
        continuation: What to go on from.

    Raises:
        NumericError: If the loss or the gradient is not finite; nothing is written from that step on.
        KeyboardInterrupt: After the step in which the user asked to stop, with a checkpoint of it.
    """
    training = work.training
    course = _Training(work, run, continuation or Continuation())
    step = course.start()
    # a run that was stopped just when it was to end early has nothing left to do
    remaining = iter(()) if course.best.exhausted else _steps(work, course.sizes, step)
    for step, micro_steps in remaining:
        course.take(step, micro_steps)
        if course.keep(step):
            raise KeyboardInterrupt
        if course.best.exhausted:
            run.emit("notice", message=course.best.farewell(step, course.sizes.steps))
            break
    best, metrics = course.best, course.report.metrics
    if training.load_best_model_at_end and best.step is not None and best.step != step:
        made = read_manifest(work.folder / BEST)
        if made is not None and made.step == best.step:
            restore_weights(work.trained.model, work.folder / BEST)
            metrics = best.metrics
            run.emit("notice", message=f"the result is the model of step {best.step}, the best by {best.metric}")
        else:
            run.emit("warning", message=f"the model of step {best.step}, the best, is lost: the result is the last one")
    return Course(step, course.sizes, course.report, best, metrics)


class _Training:
    """The parts of a training that go together."""

    def __init__(self, work: Work, run: RunContext, continuation: Continuation) -> None:
        training, accelerator = work.training, work.accelerator
        self.work, self.run, self.continuation = work, run, continuation
        self.sizes = sizes = plan_sizes(len(work.rows), training, accelerator.num_processes)
        self.best = BestSoFar(training)
        self.stepper = Stepper(work, sizes)
        self.checkpoints = Checkpoints(
            work.folder,
            work.trained,
            training.save_total_limit,
            lambda step: trainer_state(step, sizes, training, self.best, self.report.journal.history),
            continuation.identity,
        )
        self._evaluating = rhythm(training.eval_strategy if work.held_out else "no", training.eval_steps, sizes)
        self._saving = rhythm(training.save_strategy, training.save_steps, sizes)
        found = self._found()
        self._state = read_state(found) if found is not None else None
        done = self._state.step if self._state else 0
        self.report = Report(work.folder, sizes, training, run, accelerator, done)
        others: dict[str, Stateful] = {"best": self.best, "report": self.report, "guard": self.stepper.guard}
        self.engine = Engine(work.trained.model, self.stepper.optimizer, self.stepper.scheduler, accelerator, others)

    def start(self) -> int:
        """Put back what the run goes on from, if it does; the steps that are done."""
        state, self._state = self._state, None
        if self.continuation.point is None:
            return 0
        if state is None:
            self.run.emit("resumed", step=0, exact=True, reasons=[])
            self.run.emit("notice", message="there is no checkpoint yet: training starts from the beginning")
            return 0
        reasons = self._reasons(self.work.folder / f"checkpoint-{state.step}")
        restore(self.engine, state)
        if self.report.active:
            self.checkpoints.require_best(self.best.step, self._warn)
        self.work.accelerator.wait_for_everyone()
        self.run.emit("resumed", step=state.step, exact=not reasons, reasons=reasons)
        message = f"resumed from checkpoint-{state.step}, step {state.step} of {self.sizes.steps}"
        if reasons:
            self.run.emit("warning", message=f"{message}; not exact: {'; '.join(reasons)}")
        else:
            self.run.emit("notice", message=f"{message}: the result is that of a run that was never stopped")
        return state.step

    def take(self, step: int, micro_steps: list[list[int]]) -> None:
        """Take a step; evaluate if it is time."""
        done, grad_norm, learning_rate = self.stepper.take(step, micro_steps)
        self.report.step(step, done, learning_rate, grad_norm)
        if not (self._evaluating.due(step) or (self._evaluating.every and step == self.sizes.steps)):
            return
        metrics = self.stepper.evaluate()
        improved = self.best.update(step, metrics)
        self.report.evaluated(step, metrics)
        if improved:
            self._written(step, lambda: self.checkpoints.save_best(step), best=True)

    def keep(self, step: int) -> bool:
        """Write a checkpoint if it is time or somebody asks; True if the run is to stop."""
        asked = torch.tensor([float(self.run.stop_requested), float(self.run.take_checkpoint_request())])
        stop, now = (bool(value) for value in sum_over_processes(asked.double(), self.work.accelerator).tolist())
        # what follows the last step (an evaluation, the result) may be interrupted or fail, and is then done again
        last = self._saving.every > 0 and (step == self.sizes.steps or self.best.exhausted)
        if self._saving.due(step) or last or stop or now:
            state = snapshot(self.engine, step, copy=False)
            self._written(step, lambda: self._saved(step, state), best=step == self.best.step)
            self.work.accelerator.wait_for_everyone()
        return stop

    def _saved(self, step: int, state: TrainingState) -> Path:
        return self.checkpoints.save(step, self.best.step, state)

    def _written(self, step: int, write: Callable[[], Path], *, best: bool) -> None:
        """Write on the main process; a disk that does not take it costs this checkpoint, not the run."""
        if not self.report.active:
            return
        try:
            path = write()
        except DiskError as error:
            self.report.survived(f"step {step}: the checkpoint is lost", str(error.problems[0].message))
        else:
            self.run.emit("checkpoint", step=step, path=str(path), best=best)

    def _found(self) -> Path | None:
        """The checkpoint to go on from."""
        point = self.continuation.point
        if point is None:
            return None
        if self.work.accelerator.is_main_process:
            found = self.checkpoints.recover(point.checkpoint, self._warn)
        self.work.accelerator.wait_for_everyone()
        return found if self.work.accelerator.is_main_process else newest(self.work.folder, point.checkpoint)

    def _reasons(self, found: Path) -> list[str]:
        """Why the result may be another than that of a run without interruption.

        Raises:
            LlamaFarmError: If the run must not go on.
        """
        point, manifest = self.continuation.point, read_manifest(found)
        assert point is not None
        before = manifest.identity if manifest else {}
        return [*point.changes, *differences(before, self.continuation.identity, allow=point.allow_changes)]

    def _warn(self, message: str) -> None:
        self.run.emit("warning", message=message)


def _steps(work: Work, sizes: Sizes, done: int) -> Iterator[tuple[int, list[list[int]]]]:
    """The rows of each micro-step of each optimizer step after `done` for this process, with the step's number."""
    training, accelerator = work.training, work.accelerator
    seed = training.seed if training.data_seed is None else training.data_seed
    lengths = [len(row.input_ids) for row in work.rows]
    if done >= sizes.steps:
        return
    step = done - done % sizes.steps_per_epoch
    for epoch in count(done // sizes.steps_per_epoch):
        order = epoch_order(
            lengths,
            seed,
            epoch,
            sizes.micro_rows,
            by_length=training.group_by_length,
            difficulty=work.difficulty,
        )
        micro = micro_batches(order, training.batch_size, accelerator.process_index, accelerator.num_processes)
        for group in steps_of(micro, sizes.accumulation):
            step += 1
            if step > done:
                yield step, group
            if step == sizes.steps:
                return
