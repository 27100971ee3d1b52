"""The training loop: from rows to trained weights, in one process or several, from the start or from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch

from llamafarm.api import ResumePoint, RunContext
from llamafarm.data.stored import lengths_of
from llamafarm.errors import DiskError
from llamafarm.models._finite import first_not_finite
from llamafarm.models.checkpoint import read_manifest
from llamafarm_tuners.pytorch._batches import epoch_order, micro_batches, steps_of
from llamafarm_tuners.pytorch._checkpoints import BEST, Checkpoints, Found, restore_weights
from llamafarm_tuners.pytorch._diagnosis import keep_broken
from llamafarm_tuners.pytorch._evaluate import sum_over_processes, wait_for_all
from llamafarm_tuners.pytorch._recovery import Recovery
from llamafarm_tuners.pytorch._report import Report
from llamafarm_tuners.pytorch._state import (
    METHODS,
    Engine,
    Stateful,
    TrainingState,
    read_state,
    restore,
    snapshot,
    understood,
)
from llamafarm_tuners.pytorch._step import Stepper
from llamafarm_tuners.pytorch._work import Work
from llamafarm_tuners.pytorch.best import BestSoFar, without_effect
from llamafarm_tuners.pytorch.guard import Offence
from llamafarm_tuners.pytorch.identity import differences
from llamafarm_tuners.pytorch.journal import trainer_state
from llamafarm_tuners.pytorch.progress import PROGRESS
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
        found: What an earlier run left.
    """

    point: ResumePoint | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    found: Found = field(default_factory=Found)


def train(work: Work, run: RunContext, continuation: Continuation | None = None) -> Course:
    """Train the model in place, writing checkpoints and logs.

    Args:
        work: What to do.
        run: Receives events; silent on all processes but one.
        continuation: What to go on from.

    Raises:
        NumericError: If the loss or the gradient is not finite and the run cannot go on from an earlier step; no
            checkpoint is written from that step on.
        KeyboardInterrupt: After the step in which the user asked to stop, with a checkpoint of it.
    """
    training = work.training
    course = _Training(work, run, continuation or Continuation())
    step = course.start()
    # a run that was stopped just when it was to end early has nothing left to do
    remaining = iter(()) if course.best.exhausted else _steps(work, course.sizes, step)
    while (upcoming := next(remaining, None)) is not None:
        step, micro_steps = upcoming
        try:
            with PROGRESS.elsewhere("a step"):
                course.take(step, micro_steps)
        except Offence as offence:
            step = course.back(offence, micro_steps)
            remaining = _steps(work, course.sizes, step)
            continue
        with PROGRESS.elsewhere("a step"):
            stop = course.keep(step)
        if stop:
            raise KeyboardInterrupt
        if course.best.exhausted:
            run.emit("notice", message=course.best.farewell(step, course.sizes.steps))
            break
    best, metrics = course.best, course.report.metrics
    if training.load_best_model_at_end and best.step is not None and best.step != step:
        made = read_manifest(work.folder / BEST)
        if made is not None and made.step == best.step:
            restore_weights(work.trained, work.folder / BEST)
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
        self.stepper = Stepper(work, sizes, run.emit, self._save_as)
        self.recovery = Recovery(training.guard, run, self.stepper.patient)
        self.checkpoints = Checkpoints(
            work.folder,
            work.trained,
            training.save_total_limit,
            lambda step: trainer_state(step, sizes, training, self.best, self.report.journal.history),
            continuation.identity,
            continuation.found.saved,
        )
        strategy, every = training.eval_interval
        self._evaluating = rhythm(strategy if work.held_out else "no", every, sizes)
        self._saving = rhythm(training.save_strategy, training.save_steps, sizes)
        found = continuation.found.checkpoint
        self._state = read_state(found) if found is not None else None
        done = self._state.step if self._state else 0
        self.report = Report(work.folder, sizes, training, run, accelerator, done)
        others: dict[str, Stateful] = {
            "best": self.best,
            "report": self.report,
            "guard": self.stepper.guard,
            "recovery": self.recovery,
            "micro_batch": self.stepper.micro,
            METHODS: work.methods,
        }
        self.engine = Engine(work.trained.model, self.stepper.optimizer, self.stepper.scheduler, accelerator, others)

    def start(self) -> int:
        """Put back what the run goes on from, if it does; the steps that are done."""
        for message in without_effect(self.work.training, self._evaluating.before(self.sizes.steps)):
            self.run.emit("notice", message=message)
        step = self._started()
        self._find_micro_batch(step)
        self.recovery.keep(self.engine, step, first=True)
        return step

    def _started(self) -> int:
        state, self._state = self._state, None
        if self.continuation.point is None:
            return 0
        if state is None:
            self.run.emit("resumed", step=0, exact=True, reasons=[])
            self.run.emit("notice", message="there is no checkpoint yet: training starts from the beginning")
            return 0
        reasons = self._reasons(self.work.folder / f"checkpoint-{state.step}")
        with understood(self.work.folder / f"checkpoint-{state.step}"):
            self.recovery.resume(state)
            restore(self.engine, state)
        if changes := self.continuation.point.changes:
            self.stepper.configured.put_back(rates=any(one.startswith("training.learning_rate ") for one in changes))
        if self.report.active:
            self.checkpoints.require_best(self.best.step, self._warn)
        wait_for_all(self.work.accelerator)
        self.run.emit("resumed", step=state.step, exact=not reasons, reasons=reasons)
        message = f"resumed from checkpoint-{state.step}, step {state.step} of {self.sizes.steps}"
        if reasons:
            self.run.emit("warning", message=f"{message}; not exact: {'; '.join(reasons)}")
        else:
            self.run.emit("notice", message=f"{message}: the result is that of a run that was never stopped")
        return state.step

    def take(self, step: int, micro_steps: list[list[int]]) -> None:
        """Take a step; evaluate if it is time.

        Raises:
            Offence: If it must not count.
        """
        stepper, left_out = self.stepper, step in self.recovery.skipped
        done, grad_norm, learning_rate = stepper.leave_out() if left_out else stepper.take(step, micro_steps)
        self.report.step(step, done, learning_rate, grad_norm)
        if self._evaluating.due(step) or (self._evaluating.every and step == self.sizes.steps):
            self._evaluate(step)
        stepper.guard.read(step, self.report.journal.history, last=step == self.sizes.steps)

    def back(self, offence: Offence, micro_steps: list[list[int]]) -> int:
        """Keep what broke, and go back to an earlier step, whose number it returns.

        Raises:
            NumericError: If the run is to end, or nothing is left to try.
        """
        self._keep_broken(offence, micro_steps)
        if offence.action == "stop":
            raise offence.error(damaged=self._damaged(offence)) from None
        step = self.recovery.back(self.engine, offence)
        if step is None:
            tried = ", ".join(self.recovery.remedies) or "nothing"
            more = f"; going back did not help (tried: {tried})"
            raise offence.error(more, damaged=self._damaged(offence)) from None
        if self.report.active:
            self.checkpoints.require_best(self.best.step, self._warn)
        return step

    def _damaged(self, offence: Offence) -> str | None:
        """A weight of the base model that is not finite, and was not before the first step; None if there is none."""
        return first_not_finite(self.work.trained.model, trained=offence.step == 1)

    def _keep_broken(self, offence: Offence, micro_steps: list[list[int]]) -> None:
        """Write down the step that broke, where it can be taken again; a disk that is full costs only that."""
        if not self.work.training.guard.save_broken_step:
            return
        folder = self.work.folder / "llamafarm" / f"broken-step-{offence.step}"
        try:
            known = {
                "remedies": list(self.recovery.remedies),
                "base_dtype": self.continuation.identity.get("base_dtype"),
            }
            bad = keep_broken(self.stepper, offence, micro_steps, folder, known)
        except DiskError as error:
            self.report.survived(f"step {offence.step}: its record is lost", str(error.problems[0].message))
            return
        where = f"; the first value that is not finite: {bad}" if bad else ""
        self.run.emit("broken", step=offence.step, path=str(folder))
        self.run.emit("notice", message=f"step {offence.step} is kept in {folder.name}{where}")

    def _evaluate(self, step: int) -> None:
        with PROGRESS.elsewhere("evaluation"):
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
            self.recovery.keep(self.engine, step, checkpoint=True)
            state = snapshot(self.engine, step, copy=False)
            self._written(step, lambda: self._saved(step, state), best=step == self.best.step)
            wait_for_all(self.work.accelerator)
        else:
            self.recovery.keep(self.engine, step)
        return stop

    def _find_micro_batch(self, step: int) -> None:
        """Find out how many rows the memory takes at a time, if that is wanted and not known from a checkpoint."""
        training, micro = self.work.training, self.stepper.micro
        if not training.auto_find_batch_size or micro.limit is not None:
            return
        rows = min(len(self.work.rows), training.batch_size * self.sizes.accumulation)
        lengths = lengths_of(self.work.rows)
        longest = sorted(range(len(lengths)), key=lambda row: -lengths[row])[:rows]
        self.stepper.try_sizes(longest)
        message = f"{micro.limit} of the {rows} rows of a step go through the model at a time, tried with the longest"
        self.run.emit("micro_batch", step=step, rows=micro.limit)
        self.run.emit("notice", message=message)

    def _save_as(self, name: str, step: int) -> None:
        self._written(step, lambda: self.checkpoints.save_as(name, step), best=False)

    def _saved(self, step: int, state: TrainingState) -> Path:
        return self.checkpoints.save(step, self.best.step, state)

    def _written(self, step: int, write: Callable[[], Path], *, best: bool) -> None:
        """Write on the main process; a disk that does not take it costs this checkpoint, not the run."""
        if not self.report.active:
            return
        try:
            with PROGRESS.elsewhere("writing a checkpoint"):
                path = write()
        except DiskError as error:
            self.report.survived(f"step {step}: the checkpoint is lost", str(error.problems[0].message))
        else:
            self.run.emit("checkpoint", step=step, path=str(path), best=best)

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
    lengths = lengths_of(work.rows)
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
