"""A fine-tuning from plan to result: load, measure the base, train, measure again, save."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from llamafarm.api import PreparedData, RunContext, RunPlan, TrainingConfig, TrainingResult
from llamafarm.data.questions import questions
from llamafarm.data.tokens import TokenizedRow
from llamafarm.errors import HardwareError, Problem, StrategyError
from llamafarm.models._load import quiet
from llamafarm.models.first_token import asked_first_token, set_first_token
from llamafarm.models.locate import locate
from llamafarm_tuners.pytorch._answers import exact_match
from llamafarm_tuners.pytorch._checkpoints import Found, newest, recover
from llamafarm_tuners.pytorch._evaluate import sum_over_processes
from llamafarm_tuners.pytorch._frozen import base_model, begun_with
from llamafarm_tuners.pytorch._heartbeat import heartbeat
from llamafarm_tuners.pytorch._job import Fit, Silent, accelerator_for
from llamafarm_tuners.pytorch._memory import is_out_of_memory
from llamafarm_tuners.pytorch._methods import Methods
from llamafarm_tuners.pytorch._model import (
    count_parameters,
    keep_trained_format,
    model_for,
    moved,
    say_precision,
    seed_everything,
    vocabulary_for,
    warn_of_unlearned_tokens,
)
from llamafarm_tuners.pytorch._result import TRAINED, metrics_of, save, share
from llamafarm_tuners.pytorch._stability import compiled, process_switches
from llamafarm_tuners.pytorch._state import read_methods
from llamafarm_tuners.pytorch._store import Trained
from llamafarm_tuners.pytorch._train import Continuation, train
from llamafarm_tuners.pytorch._work import Work
from llamafarm_tuners.pytorch.config import PytorchConfig
from llamafarm_tuners.pytorch.curriculum import difficulty
from llamafarm_tuners.pytorch.fast._install import Paths, Wanted, fast_paths
from llamafarm_tuners.pytorch.global_batch import settle_batches
from llamafarm_tuners.pytorch.guard.advice import advice
from llamafarm_tuners.pytorch.identity import identity
from llamafarm_tuners.pytorch.kernels import unusable_liger
from llamafarm_tuners.pytorch.packs import packed_rows
from llamafarm_tuners.pytorch.precision import autocast
from llamafarm_tuners.pytorch.schedule import plan_sizes
from llamafarm_tuners.pytorch.sides import tokenized_sides
from llamafarm_tuners.pytorch.tasks import require_metric, tasks_of


def fit(config: PytorchConfig, plan: RunPlan, data: PreparedData, run: RunContext) -> TrainingResult:
    """Carry out a run.

    Raises:
        LlamaFarmError: For everything a user can mend.
    """
    quiet()
    accelerator = accelerator_for(plan, autocast(config.training, plan))
    training = settle_batches(config.training, plan.given, accelerator.num_processes)
    config = config.model_copy(update={"training": training})
    job = Fit(config, plan, data, run if accelerator.is_main_process else Silent(run), accelerator)
    watched = heartbeat(accelerator, config.training.heartbeat_timeout, job.run)
    with watched, _memory_explained(plan), process_switches(config.training, plan):
        return _carry_out(job)


def _carry_out(job: Fit) -> TrainingResult:
    _require_one_process(job)
    _require_agreement(job)
    plan, accelerator = job.plan, job.accelerator
    found = _found(job)
    job.kept = read_methods(found.checkpoint) if found.checkpoint is not None else None
    job.begun = begun_with(found.checkpoint)
    work, parameters = prepare(job)
    try:
        job.run.emit("phase", name="training")
        with compiled(work.trained.model, work.training, plan), paths_of(job, work) as paths:
            course = train(replace(work, paths=paths), job.run, Continuation(plan.resume, job.identity, found))
        parameters = count_parameters(work.trained.model)  # methods may have changed them
        _exact_match(job, "tuned", work.trained.model, work.trained)
        metrics = metrics_of(course, job.results)
        if accelerator.is_main_process:
            job.run.emit("phase", name="saving")
            save(job, work.trained, course, metrics)
    finally:
        for method in plan.methods:
            method.finish(work.trained.model, job.run)
    accelerator.wait_for_everyone()
    return TrainingResult(metrics, plan.output_dir, course.best.step, *parameters)


def _require_agreement(job: Fit) -> None:
    """Check that all processes go on from a checkpoint, or none: each has looked at the folder by itself.

    Where the first begins anew, what another has found is the run that the first has just begun.
    """
    going_on = float(job.plan.resume is not None)
    both = torch.tensor([going_on, going_on * job.accelerator.is_main_process], dtype=torch.float64)
    total, first = sum_over_processes(both, job.accelerator).tolist()
    if not first:
        job.plan = replace(job.plan, resume=None)
    elif total != job.accelerator.num_processes:
        message = f"{total:g} of {job.accelerator.num_processes} processes found a run to go on with, the others none"
        raise StrategyError.of("LF-TRAIN-079", message, hint="name it with --resume, or start in another folder")


def _require_one_process(job: Fit) -> None:
    """Refuse parameters that grow where processes add up gradients in places that are laid out once."""
    growing = next((method.name for method in job.plan.methods if method.adapter().grows), None)
    if growing and job.accelerator.num_processes > 1:
        message = (
            f"{growing!r} grows while it is trained, which {job.accelerator.num_processes} processes cannot follow"
        )
        raise StrategyError.of("LF-TRAIN-076", message, hint="start one process, or train with one rank (r)")


def _found(job: Fit) -> Found:
    """What an earlier run left to go on from; the main process clears up."""
    point = job.plan.resume
    if point is None:
        return Found()
    accelerator, folder = job.accelerator, job.plan.output_dir
    if accelerator.is_main_process:
        found = recover(folder, point.checkpoint, lambda message: job.run.emit("warning", message=message))
    accelerator.wait_for_everyone()
    return found if accelerator.is_main_process else newest(folder, point.checkpoint)


def paths_of(job: Fit, work: Work) -> AbstractContextManager[Paths]:
    """The ways in which the model computes while it is trained; a compiled one computes in its own."""
    device, rows = job.accelerator.device, [*work.rows, *work.held_out]
    wanted = Wanted.nothing() if work.training.torch_compile else ways(work.training, job.plan)
    return fast_paths(moved(work.trained.model, device), rows, device, job.run, wanted, job.accelerator.autocast)


def ways(training: TrainingConfig, plan: RunPlan) -> Wanted:
    """Which of the faster ways a run may take."""
    return Wanted(
        layers=training.fused, adapters=training.fused, liger=training.use_liger_kernel and unusable_liger(plan) is None
    )


def prepare(job: Fit) -> tuple[Work, tuple[int, int]]:
    """Load and tokenize everything, measure the base, and apply the methods."""
    config, plan, run, processes = job.config, job.plan, job.run, job.accelerator.num_processes
    run.emit("phase", name="loading model")
    seed_everything(config.training.seed)
    vocabulary = vocabulary_for(config.base_model, job.data.train, run)
    tokenizer = vocabulary.tokenizer
    first = asked_first_token(plan.methods, tokenizer)
    sides = tokenized_sides(config, job.data, tokenizer, run, first)
    rows, held_out = sides.train.rows, sides.eval.rows
    _require_held_out(job, held_out)
    tasks = tasks_of(held_out, job.data.eval)
    require_metric(config.training, tasks, plan.given.get("training.metric_for_best_model", ""))
    loading = partial(model_for, plan=plan, vocabulary=vocabulary, run=run)
    base_config, model, why = base_model(loading, config, plan, rows, job.accelerator, job.begun)
    job.config = config = base_config
    say_precision(model, config, plan, run, why)
    job.identity.update(_identity(job, tokenizer))
    base = config.base_model.huggingface_id or ""
    trained = Trained(model, tokenizer, base, locate(base).public_name if base else "")
    _exact_match(job, "base", model, trained)
    set_first_token(model, first)
    for method in plan.methods:
        model = method.apply(model, run)
    learned = packed_rows(rows, config.training, run, processes)
    methods = Methods(model, plan.methods, run)
    if job.kept is not None:
        methods.load_state_dict(job.kept)
    else:
        steps = plan_sizes(len(learned), config.training, processes).steps
        moved(model, job.accelerator.device)
        methods.begin(rows, int(tokenizer.pad_token_id or 0), config.training, steps)
    keep_trained_format(model, config.training)
    warn_of_unlearned_tokens(model, run)
    names = " + ".join(method.name for method in plan.methods)
    counts = count_parameters(model)
    run.emit("model", trainable_parameters=counts[0], total_parameters=counts[1], base=trained.base_name, method=names)
    facts = {"method": names, TRAINED: share(counts), "training rows": len(rows)}
    trained = replace(trained, model=model, facts=facts, methods=plan.methods)
    hard = difficulty(config.training.curriculum, rows, job.data.train)
    work = Work(trained, learned, held_out, config.training, job.accelerator, plan.output_dir, methods, hard, tasks)
    return replace(work, place=lambda index: str(job.data.train[index].ref)), counts


def _identity(job: Fit, tokenizer: Any) -> dict[str, Any]:
    """What the result is made from."""
    processes, precision = job.accelerator.num_processes, job.accelerator.mixed_precision
    return identity(job.config, job.plan, job.data, tokenizer, processes=processes, precision=precision)


def _require_held_out(job: Fit, held_out: Sequence[TokenizedRow]) -> None:
    """Refuse what needs held-out rows when there are none; say so where it was only a default."""
    training, evaluation = job.config.training, job.config.evaluation
    wanted = {
        "training.load_best_model_at_end": training.load_best_model_at_end,
        "training.early_stopping": training.early_stopping,
        "evaluation.exact_match": evaluation.exact_match,
    }
    hint = "add dataset.eval_path or a data_splitter"
    problems = []
    for path in (path for path, on in wanted.items() if on and not held_out):
        message = f"{path}: nothing is held out to evaluate on"
        if path in job.plan.given:
            problems.append(Problem("LF-TRAIN-010", message, job.plan.given[path], hint))
        else:
            job.run.emit("notice", message=f"{message}, so it is off; {hint}")
    if not held_out and "training.eval_steps" in job.plan.given:
        job.run.emit("notice", message=f"training.eval_steps: nothing is held out to evaluate on; {hint}")
    if problems:
        raise StrategyError(problems)


def _exact_match(job: Fit, which: str, model: Any, trained: Trained) -> None:
    """Measure exact match of the `base` or the `tuned` model, if that is wanted."""
    config = job.config.evaluation
    wanted = config.exact_match and job.data.eval and (which == "tuned" or config.baseline)
    if not wanted or not job.accelerator.is_main_process:
        return
    asked = questions(job.data.eval, config.max_samples, trained.tokenizer)
    if not asked.prompts:
        job.run.emit("warning", message="exact_match needs conversations; the held-out rows are raw text")
        return
    if which == "tuned" and asked.left_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in asked.left_out.items())
        job.run.emit("notice", message=f"exact_match answers {len(asked.prompts):,} conversations; not: {reasons}")
    job.run.emit("phase", name="evaluating")
    flash = getattr(model.config, "_attn_implementation", "") == "flash_attention_2"
    with job.accelerator.autocast() if flash else nullcontext():  # that kernel computes in 16 bits only
        share, samples = exact_match(model, trained.tokenizer, asked, config, job.accelerator.device)
    job.results["exact_match_base" if which == "base" else "exact_match"] = share
    job.results["samples_base" if which == "base" else "samples"] = samples
    job.run.emit("exact_match", model=which, exact_match=share, samples=len(asked.prompts))


@contextmanager
def _memory_explained(plan: RunPlan) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # what would fit, by estimate, belongs into this hint
        raise HardwareError.of(
            "LF-HARDWARE-010",
            f"out of memory on {plan.device.name} ({str(error).splitlines()[0][:120] if str(error) else 'no details'})",
            hint=advice("out-of-memory"),
        ) from error
