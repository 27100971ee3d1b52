"""The training loop: from rows to trained weights, in one process or several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count

from llamafarm.api import RunContext
from llamafarm_tuners.pytorch._batches import epoch_order, micro_batches, steps_of
from llamafarm_tuners.pytorch._checkpoints import BEST, Checkpoints, restore
from llamafarm_tuners.pytorch._report import Report
from llamafarm_tuners.pytorch._step import Stepper, Work
from llamafarm_tuners.pytorch.best import BestSoFar
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


def train(work: Work, run: RunContext) -> Course:
    """Train the model in place, writing checkpoints and logs.

    Args:
        work: What to do.
        run: Receives events; silent on all processes but one.

    Raises:
        NumericError: If the loss or the gradient is not finite; nothing is written from that step on.
        KeyboardInterrupt: After the step in which the user asked to stop.
    """
    training, accelerator = work.training, work.accelerator
    sizes = plan_sizes(len(work.rows), training, accelerator.num_processes)
    best = BestSoFar(training)
    report = Report(work.folder, sizes, training, run, accelerator)
    checkpoints = Checkpoints(
        work.folder,
        work.trained,
        training.save_total_limit,
        lambda step: trainer_state(step, sizes, training, best, report.journal.history),
    )
    stepper = Stepper(work, sizes)
    evaluating = rhythm(training.eval_strategy if work.held_out else "no", training.eval_steps, sizes)
    saving = rhythm(training.save_strategy, training.save_steps, sizes)
    metrics: Mapping[str, float] = {}
    step = 0
    for step, micro_steps in _steps(work, sizes):
        done, grad_norm, learning_rate = stepper.take(step, micro_steps)
        report.step(step, done, learning_rate, grad_norm)
        if evaluating.due(step) or (evaluating.every and step == sizes.steps):
            metrics = stepper.evaluate()
            improved = best.update(step, metrics)
            report.evaluated(step, metrics)
            if improved and report.active:
                run.emit("checkpoint", step=step, path=str(checkpoints.save_best(step)), best=True)
        if saving.due(step) and report.active:
            run.emit("checkpoint", step=step, path=str(checkpoints.save(step, best.step)), best=step == best.step)
        accelerator.wait_for_everyone()
        if run.stop_requested:
            raise KeyboardInterrupt
        if best.exhausted:
            run.emit("notice", message=best.farewell(step, sizes.steps))
            break
    if training.load_best_model_at_end and best.step is not None and best.step != step:
        restore(work.trained.model, work.folder / BEST)
        metrics = best.metrics
        run.emit("notice", message=f"the result is the model of step {best.step}, the best by {best.metric}")
    return Course(step, sizes, report, best, metrics)


def _steps(work: Work, sizes: Sizes) -> Iterator[tuple[int, list[list[int]]]]:
    """The rows of each micro-step of each optimizer step for this process, with the step's number from 1 on."""
    training, accelerator = work.training, work.accelerator
    seed = training.seed if training.data_seed is None else training.data_seed
    lengths = [len(row.input_ids) for row in work.rows]
    step = 0
    for epoch in count():
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
            yield step, group
            if step == sizes.steps:
                return
