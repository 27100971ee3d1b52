"""Take the step that broke again, from its record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamafarm.api import PreparedData, RunContext, RunPlan
from llamafarm.errors import RunDirectoryError
from llamafarm.models._load import quiet
from llamafarm_tuners.pytorch._batches import Batch
from llamafarm_tuners.pytorch._broken import put_weights, read_broken, read_kept
from llamafarm_tuners.pytorch._diagnosis import look_into, plain
from llamafarm_tuners.pytorch._evaluate import sum_over_processes
from llamafarm_tuners.pytorch._fit import paths_of, prepare
from llamafarm_tuners.pytorch._job import Fit, accelerator_for
from llamafarm_tuners.pytorch._memory import is_out_of_memory
from llamafarm_tuners.pytorch._random import set_random_state
from llamafarm_tuners.pytorch._remedies import apply_again
from llamafarm_tuners.pytorch._stability import process_switches
from llamafarm_tuners.pytorch._step import Stepper
from llamafarm_tuners.pytorch._work import Work
from llamafarm_tuners.pytorch.config import PytorchConfig
from llamafarm_tuners.pytorch.frozen import with_base
from llamafarm_tuners.pytorch.global_batch import settle_batches
from llamafarm_tuners.pytorch.precision import autocast
from llamafarm_tuners.pytorch.schedule import plan_sizes


def replay_step(config: PytorchConfig, plan: RunPlan, data: PreparedData, run: RunContext, folder: Path) -> str | None:
    """Compute loss and gradient of a recorded step with the weights, rows and generators that it had.

    Args:
        config: The run's.
        plan: The run's.
        data: The run's; its rows are not used, those of the record are.
        run: Is told what is loaded, and as `replayed` what the loss is now and was then.
        folder: The record.

    Returns:
        The first value that is not finite, in words; None if all are.

    Raises:
        RunDirectoryError: If the record is not of this model.
    """
    quiet()
    accelerator = accelerator_for(plan, autocast(config.training, plan))
    training = settle_batches(config.training, plan.given, accelerator.num_processes)
    unmeasured = config.evaluation.model_copy(update={"exact_match": False})
    config = config.model_copy(update={"training": training, "evaluation": unmeasured})
    with process_switches(config.training, plan):
        settled = _as_it_was(config, plan, folder)
        job = Fit(settled, plan, data, run, accelerator, kept=read_kept(folder))
        work, _ = prepare(job)
        try:
            with paths_of(job, work) as paths:
                return _first_bad(replace(work, paths=paths), folder, run)
        finally:
            for method in plan.methods:
                method.finish(work.trained.model, run)


def _as_it_was(config: PytorchConfig, plan: RunPlan, folder: Path) -> PytorchConfig:
    """The configuration with the format of the base that the run had, on whatever machine."""
    if config.base_model.torch_dtype != "auto" or plan.device.type != "cpu":
        return config
    return with_base(config, read_broken(folder)[0].get("base_dtype") or "float32")


def _first_bad(work: Work, folder: Path, run: RunContext) -> str | None:
    facts, parts, weights = read_broken(folder)
    stepper = Stepper(work, plan_sizes(len(work.rows), work.training), _unheard)
    apply_again(facts["remedies"], stepper.patient())
    if odd := put_weights(work.trained.model, weights):
        message = f"the record is of another model: {odd[0]} is on one side only ({len(odd)} differ)"
        raise RunDirectoryError.of("LF-RUN-052", message, where=str(folder), hint="replay it with the run's own files")
    random, device = json.dumps(facts["random"]), work.accelerator.device
    batches = [stepper.work.batch(rows) for rows in parts]
    set_random_state(random, device)
    loss = _loss(stepper, batches)
    if loss is not None and "loss" in facts:
        run.emit("replayed", loss=plain(loss), before=facts["loss"])
    set_random_state(random, device)
    bad = look_into(stepper, batches)
    return str(bad) if bad else None


def _loss(stepper: Stepper, batches: Sequence[Batch]) -> float | None:
    """The step's loss as training computes it, to its last bit; None without the memory.

    Looking into a step takes slower ways, as modules that are watched are called one by one, and rounds differently.
    """
    try:
        own = stepper.gradient(batches).loss.detach()[None]
        return float(sum_over_processes(own, stepper.work.accelerator).item())
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _unheard(*_: Any, **__: Any) -> None:
    """What a stepper warns of is known."""
