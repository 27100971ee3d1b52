"""`doctor STRATEGY`: train a few steps in a temporary folder, and judge whether the numbers are healthy."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafarm.api.values import Event
from llamafarm.errors import NumericError

if TYPE_CHECKING:
    from llamafarm.api.config import TrainingConfig
    from llamafarm.core.registry import Registry

STEPS, OVERFIT_STEPS = 10, 100
OVERFIT_ROWS = 8
LEARNED = 0.1
"""Mean loss of a token below which a few rows count as learned by heart."""

_WINDOW = 3
_QUIET = (
    "training.logging_steps=1",
    "training.logging_first_step=true",
    "training.save_strategy=no",
    "training.eval_strategy=no",
    "training.load_best_model_at_end=false",
    "training.early_stopping=false",
    "training.report_to=[none]",
    "training.push_to_hub=false",
    "evaluation.exact_match=false",
    "dataset.cache=false",
)
_BY_HEART = (
    "training.lr_scheduler_type=constant",
    "training.weight_decay=0",
    "training.global_batch_size=null",
    f"dataset.max_samples={OVERFIT_ROWS}",
)


@dataclass(frozen=True, slots=True)
class Trial:
    """What to try.

    Attributes:
        strategy: Name or file.
        sets: Overrides of the user.
        steps: Optimizer steps.
        overfit: Learn a few rows by heart instead of looking at the first steps.
        norms: The range of the gradient's norm that is taken for healthy.
    """

    strategy: str
    sets: tuple[str, ...]
    steps: int
    overfit: bool
    norms: tuple[float, float]


@dataclass(slots=True)
class Verdict:
    """What came of a trial.

    Attributes:
        losses: One a step.
        grad_norms: One a step.
        failures: Why the training is not healthy.
        notes: What deserves a look.
        remedies: What to add to the command, the mildest first.
    """

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    remedies: list[str] = field(default_factory=list)


def carry_out(trial: Trial, registry: Registry, listener: Callable[[Event], None]) -> Verdict:
    """Train in a temporary folder that is removed afterwards.

    Raises:
        LlamaFarmError: If the strategy cannot be trained at all; numbers that are not finite are a verdict.
    """
    from llamafarm.core.load import load
    from llamafarm.core.plan import make_plan
    from llamafarm.core.request import Request
    from llamafarm.core.run import train

    verdict = Verdict()

    def listen(event: Event) -> None:
        _collect(event.fields if event.type == "log" else {}, verdict)
        listener(event)

    training = load(Request(trial.strategy, sets=trial.sets), registry).tuner_config.training
    with tempfile.TemporaryDirectory(prefix="llamafarm-doctor-") as folder:
        own: tuple[str, ...] = (*_QUIET, f"training.max_steps={trial.steps}", f"output_dir={Path(folder) / 'run'}")
        if trial.overfit:
            own += (*_BY_HEART, *_all_at_once(training))
        loaded = load(Request(trial.strategy, sets=(*trial.sets, *own)), registry)
        planned = replace(make_plan(loaded, registry), splitter=None)  # all rows are there to be trained
        try:
            train(loaded, planned, registry, listen)
        except NumericError as error:
            verdict.failures.append(str(error.problems[0]))
    judge(verdict, trial)
    if verdict.failures:
        verdict.remedies = _remedies(training, trial)
    return verdict


def _all_at_once(training: TrainingConfig) -> tuple[str, str]:
    """Batches that make each step see all of the few rows."""
    size = min(training.batch_size, OVERFIT_ROWS)
    steps = -(-OVERFIT_ROWS // size)
    return f"training.batch_size={size}", f"training.gradient_accumulation_steps={steps}"


def _collect(fields: Mapping[str, Any], verdict: Verdict) -> None:
    if "loss" in fields:
        verdict.losses.append(float(fields["loss"]))
        verdict.grad_norms.append(float(fields.get("grad_norm", 0.0)))


def judge(verdict: Verdict, trial: Trial) -> None:
    """Add to a verdict what its losses and gradient norms say."""
    losses, norms = verdict.losses, verdict.grad_norms
    if not losses:
        verdict.failures = verdict.failures or ["not one step was taken"]
        return
    if not trial.overfit and 0.0 in losses:
        verdict.failures.append(f"the loss is exactly 0 at step {losses.index(0.0) + 1}: nothing is learned")
    if 0.0 in norms and not trial.overfit:
        verdict.failures.append(
            f"the gradient is exactly 0 at step {norms.index(0.0) + 1}: nothing reaches the weights"
        )
    middle, (low, high) = statistics.median(norms), trial.norms
    if not trial.overfit and not low <= middle <= high:
        verdict.notes.append(f"the gradient's norm is {middle:.3g} in the middle, outside {low:g} to {high:g}")
    last = statistics.fmean(losses[-_WINDOW:])
    if trial.overfit and last >= LEARNED:
        verdict.failures.append(
            f"{OVERFIT_ROWS} rows are not learned by heart in {len(losses)} steps: the loss is still {last:.3g}, "
            f"not below {LEARNED}"
        )
    elif len(losses) >= 2 * _WINDOW and last >= statistics.fmean(losses[:_WINDOW]):
        verdict.notes.append(f"the loss does not fall: {statistics.fmean(losses[:_WINDOW]):.4g}, then {last:.4g}")


def _remedies(training: TrainingConfig, trial: Trial) -> list[str]:
    """What helps, the mildest first, as options to add."""
    if trial.overfit:
        return [f"--steps {2 * trial.steps}", f"--set training.learning_rate={training.learning_rate * 3:g}"]
    half = "training.bf16=false" if training.bf16 else "training.fp16=false" if training.fp16 else ""
    steps: Sequence[tuple[str, bool]] = (
        ("training.disable_flash_sdpa=true", not training.disable_flash_sdpa),
        ("base_model.attn_implementation=eager", True),
        (half, bool(half)),
        (f"training.learning_rate={training.learning_rate / 10:g}", True),
    )
    return [f"--set {text}" for text, helps in steps if helps]
