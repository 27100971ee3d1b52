"""What a run leaves: the result, its figures, and the best model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llamafarm.models.checkpoint import CHECKPOINT_FILE, write_manifest
from llamafarm_tuners.pytorch._checkpoints import BEST
from llamafarm_tuners.pytorch._job import Fit
from llamafarm_tuners.pytorch._model import count_parameters
from llamafarm_tuners.pytorch._store import Trained, link_files, merged_into, replaced_folder, write_model
from llamafarm_tuners.pytorch._train import Course
from llamafarm_tuners.pytorch.hub import upload
from llamafarm_tuners.pytorch.journal import trainer_state, write_json
from llamafarm_tuners.pytorch.progress import PROGRESS

TRAINED = "trained parameters"
"""A fact of a model's card."""
_ON_THE_CARD = ("train_loss", "eval_loss", "eval_token_accuracy", "eval_perplexity", "exact_match_base", "exact_match")


def metrics_of(course: Course, results: dict[str, Any]) -> dict[str, float | int | str | None]:
    """The run's figures, with those that come from answering questions."""
    total, seconds = course.report.total, course.report.elapsed
    figures = {
        "epoch": course.sizes.epoch(course.step),
        "train_steps": course.step,
        "train_loss": total.mean_loss,
        "train_runtime": round(seconds, 3),
        "train_tokens": int(total.tokens),
        "train_tokens_per_second": round(total.tokens_per_second, 1),
        "train_steps_per_second": round(course.step / seconds, 3),
        "peak_memory_bytes": course.report.peak_memory(),
    }
    shares = {name: value for name, value in results.items() if name.startswith("exact_match")}
    return {**figures, **course.metrics, **shares}


def save(job: Fit, trained: Trained, course: Course, metrics: dict[str, Any]) -> None:
    """Write the result and its figures into the run directory; the trainer's log gets its last line."""
    folder = job.plan.output_dir
    measured = {f"{name.replace('_', ' ')}": f"{value:.4g}" for name, value in metrics.items() if name in _ON_THE_CARD}
    counted = {TRAINED: share(count_parameters(trained.model))}
    final = replace(trained, facts={**trained.facts, **counted, **measured})
    with PROGRESS.elsewhere("writing the result"), merged_into(folder) as temporary:
        write_model(final, temporary)
        train_results = {name: value for name, value in metrics.items() if not name.startswith(("eval_", "exact_"))}
        write_json(temporary / "train_results.json", train_results)
        if course.metrics or job.results:
            evaluated = {"epoch": metrics["epoch"], **course.metrics, **job.results}
            write_json(temporary / "eval_results.json", evaluated)
        history = course.report.journal.history
        state = trainer_state(course.step, course.sizes, job.config.training, course.best, history)
        write_json(temporary / "trainer_state.json", state)
        PROGRESS.sign()
        write_manifest(temporary, course.step, position={"step": course.step}, identity=job.identity)
        files = [path.name for path in temporary.iterdir()]
    if course.best.step is None:
        _best_is_last(job, course.step, files)
    course.report.finish(course.step)
    if job.config.training.push_to_hub:
        upload(folder, job.config.training)
        job.run.emit("notice", message=f"uploaded to {job.config.training.hub_model_id}")


def share(counts: tuple[int, int]) -> str:
    """Trained parameters among all."""
    return f"{counts[0]:,} of {counts[1]:,}"


def _best_is_last(job: Fit, step: int, files: Sequence[str]) -> None:
    """Without evaluation the best model known is the last one: `checkpoint-best` is a second name for its files."""
    folder = job.plan.output_dir
    with replaced_folder(folder / BEST) as temporary:
        shared = [name for name in files if not name.endswith("_results.json") and name != CHECKPOINT_FILE]
        link_files([folder / name for name in shared], temporary)
        write_manifest(temporary, step, position={"step": step}, identity=job.identity)
