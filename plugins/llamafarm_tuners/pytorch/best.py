"""Which evaluation was the best, and when to stop waiting for a better one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llamafarm.api import NO_EFFECT, TrainingConfig

METRICS = ("eval_loss", "eval_token_accuracy", "eval_perplexity")
"""What an evaluation can yield; the last two only with `compute_metrics`."""


def full_name(metric: str) -> str:
    """`loss` → `eval_loss`."""
    return metric if metric.startswith("eval_") else f"eval_{metric}"


def without_effect(training: TrainingConfig, evaluations: int) -> Iterator[str]:
    """What follows the evaluations, and cannot do anything with so few.

    Args:
        training: What was asked for.
        evaluations: How many there are before the last step.
    """
    count = f"{evaluations or 'no'} evaluation{'' if evaluations == 1 else 's'} before the last step"
    if training.early_stopping and evaluations <= training.early_stopping_patience:
        patience = training.early_stopping_patience
        yield f"training.early_stopping: {NO_EFFECT}: {count}, and it waits for {patience} after the first"
    if training.load_best_model_at_end and not evaluations:
        yield f"training.load_best_model_at_end: {NO_EFFECT}: {count}; training.eval_steps says how often"


class BestSoFar:
    """Follows one metric over the evaluations of a run.

    Attributes:
        metric: Its full name.
        step: Step of the best evaluation; None before the first.
        value: Its value.
        metrics: All metrics of that evaluation.
    """

    def __init__(self, training: TrainingConfig) -> None:
        self.metric = full_name(training.metric_for_best_model)
        greater = training.greater_is_better
        self._greater = self.metric.startswith("eval_token_accuracy") if greater is None else greater
        self._threshold = training.early_stopping_threshold
        self._patience = training.early_stopping_patience if training.early_stopping else 0
        self._reference: float | None = None
        self._waited = 0
        self.step: int | None = None
        self.value: float | None = None
        self.metrics: Mapping[str, float] = {}

    def update(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Take in an evaluation; True if it is the best so far."""
        value = metrics[self.metric]
        if self._reference is None or self._gain(value, self._reference) > self._threshold:
            self._reference, self._waited = value, 0
        else:
            self._waited += 1
        if self.value is not None and self._gain(value, self.value) <= 0:
            return False
        self.step, self.value, self.metrics = step, value, metrics
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know."""
        return {
            "step": self.step,
            "value": self.value,
            "metrics": dict(self.metrics),
            "reference": self._reference,
            "waited": self._waited,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.step, self.value, self.metrics = state["step"], state["value"], state["metrics"]
        self._reference, self._waited = state["reference"], state["waited"]

    @property
    def exhausted(self) -> bool:
        """Whether early stopping is on and its patience has run out."""
        return 0 < self._patience <= self._waited

    def farewell(self, step: int, steps: int) -> str:
        """What to say when stopping early."""
        return (
            f"{self.metric} has not improved for {self._patience} evaluations "
            f"(best: {self.value:.4g} at step {self.step}): stopped at step {step} of {steps}"
        )

    def _gain(self, value: float, reference: float) -> float:
        return value - reference if self._greater else reference - value
