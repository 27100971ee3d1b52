"""Looks at each step before its update is applied, so that no weight is ever touched by a bad one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

from llamafarm.api import GuardConfig
from llamafarm.errors import NumericError, Problem
from llamafarm_tuners.pytorch.guard.advice import advice
from llamafarm_tuners.pytorch.guard.history import History, overfitting, rising_loss, underfitting
from llamafarm_tuners.pytorch.guard.statistics import robust_z

_MOST_SKIPS: Final = 25
_LEAST_LOSS: Final = 0.05
"""A deviation of the loss below this share of its median, or below as many nats, is taken for it."""
_LEAST_NORM: Final = 0.3
"""The same for the natural logarithm of the gradient's norm."""
_PLANNED: Final = 0.1
"""Below this share of its peak a learning rate is low because its schedule says so: at the beginning, or at the end."""

_NON_FINITE: Final = {"loss": "LF-NUMERIC-001", "gradient": "LF-NUMERIC-002"}
_ANOMALIES: Final = {
    "zero-loss": "LF-NUMERIC-010",
    "no-labels": "LF-NUMERIC-010",
    "spike": "LF-NUMERIC-011",
    "gradient-explosion": "LF-NUMERIC-012",
    "gradient-vanishing": "LF-NUMERIC-012",
}


class Figures(NamedTuple):
    """What a step computed, over all processes.

    Attributes:
        loss: Sum over the targets.
        labels: Targets.
        grad_norm: The gradient's global norm before clipping.
        learning_rate: That of the update that is about to be made.
        peak: The learning rate at the top of its schedule.
    """

    loss: float
    labels: float
    grad_norm: float
    learning_rate: float
    peak: float


class Offence(Exception):  # noqa: N818  # no error yet: it may be recovered from
    """A step that must not count.

    Attributes:
        step: Its number.
        id: The error's.
        kind: Its row in the table of advice.
        what: What was seen.
        action: What is to be done about it.
        figures: What the step computed.
    """

    def __init__(
        self, step: int, id_: str, kind: str, what: str, action: Literal["stop", "recover"], figures: Figures
    ) -> None:
        super().__init__(what)
        self.step, self.id, self.kind, self.what, self.action = step, id_, kind, what, action
        self.figures = figures

    def error(self, more: str = "", damaged: str | None = None) -> NumericError:
        """What the user is told if the run ends here; `damaged`: a weight of the base model that is the cause."""
        message, hint = f"step {self.step}: {self.what}; stopped before the weights changed{more}", advice(self.kind)
        if damaged is not None:
            message += f"; {damaged} of the base model itself is not finite"
            hint = "fetch the base model again, or take another"
        return NumericError([Problem(self.id, message, hint=hint)])


class Guard:
    """Judges the figures of each step, and those of the log.

    It reads numbers that training has on the host anyway, and changes nothing: a healthy run is the same without it.
    All processes are given the same numbers, and come to the same verdicts.
    """

    def __init__(self, config: GuardConfig, *, scaled: bool, say: Callable[..., object], ordered: bool = False) -> None:
        """Start with nothing seen.

        Args:
            config: What is looked at, and what follows.
            scaled: fp16: overflowing gradients are expected; such a step is skipped at a smaller scale.
            say: Is told of what is worth a warning: `message`, and `kind` and `step`.
            ordered: Rows come in an order of difficulty, so that a rising loss is no news.
        """
        self._config, self._scaled, self._say, self._ordered = config, scaled, say, ordered
        self._skipped = 0
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._said: dict[str, int] = {}
        self._read = 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know."""
        return {
            "skipped": self._skipped,
            "losses": list(self._losses),
            "norms": list(self._norms),
            "said": dict(self._said),
            "read": self._read,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._skipped = state["skipped"]
        self._losses, self._norms = list(state.get("losses", ())), list(state.get("norms", ()))
        self._said, self._read = dict(state.get("said", {})), state.get("read", 0)

    def check(self, step: int, figures: Figures) -> bool:
        """Check a step; whether its update is to be applied.

        Raises:
            Offence: If the run is to stop, or to go back.
        """
        if self._config.policy == "off":
            return True
        for name, value in (("loss", figures.loss), ("gradient", figures.grad_norm)):
            if not math.isfinite(value):
                what = f"the loss is {value}" if name == "loss" else f"the gradient's norm is {value}"
                return self._not_finite(step, name, what, figures)
        self._skipped = 0
        for kind, what in self._oddities(figures):
            self._anomaly(step, kind, what, figures)
        self._remember(figures)
        return True

    def read(self, step: int, history: History, *, last: bool) -> None:
        """Look at the log when it has grown; at the `last` step at the run as a whole too."""
        if self._config.anomalies == "off" or self._config.policy == "off" or len(history) == self._read:
            return
        self._read = len(history)
        found = {"overfitting": overfitting(history), "underfitting": underfitting(history) if last else None}
        found["rising-loss"] = None if self._ordered else rising_loss(history)
        for kind, what in found.items():
            if what:
                self._warn(step, kind, what)

    def check_evaluation(self, loss: float) -> None:
        """Check the loss of an evaluation.

        Raises:
            NumericError: If it is not finite.
        """
        if not math.isfinite(loss) and self._config.policy != "off":
            message = f"the held-out loss is {loss}: the model is not saved"
            raise NumericError([Problem("LF-NUMERIC-004", message, hint=advice("non-finite"))])

    def _not_finite(self, step: int, name: str, what: str, figures: Figures) -> bool:
        self._skipped += 1
        policy = self._config.policy
        if self._scaled and name == "gradient" and self._skipped <= _MOST_SKIPS:
            return True  # the scaler leaves the update out, and is to see why
        if policy == "warn" and self._skipped <= _MOST_SKIPS:
            self._warn(step, "non-finite", f"{what}: the step is left out")
            return False
        if self._skipped > _MOST_SKIPS:
            what = f"{what}, for {self._skipped} steps in a row"
        action: Literal["stop", "recover"] = "recover" if policy == "recover" else "stop"
        raise Offence(step, _NON_FINITE[name], "non-finite", what, action, figures)

    def _oddities(self, figures: Figures) -> list[tuple[str, str]]:
        """What is finite and looks wrong."""
        config, found = self._config, []
        if config.anomalies == "off":
            return []
        if not figures.labels:
            return [("no-labels", "there is nothing to learn in the step")]
        mean = figures.loss / figures.labels
        if mean == 0.0:
            found.append(("zero-loss", "the loss is exactly 0"))
        elif (z := self._z_loss(mean)) > config.spike_threshold:
            found.append(
                ("spike", f"the loss is {mean:.4g}, {z:.0f} deviations above the last {len(self._losses)} steps")
            )
        norm = figures.grad_norm
        if norm > config.grad_norm_max:
            found.append(("gradient-explosion", f"the gradient's norm is {norm:.4g}, above {config.grad_norm_max:g}"))
        elif norm < config.grad_norm_min:
            found.append(("gradient-vanishing", f"the gradient's norm is {norm:.4g}, below {config.grad_norm_min:g}"))
        elif (z := robust_z(_log(norm), self._norms, _LEAST_NORM)) > config.spike_threshold:
            found.append(("gradient-explosion", f"the gradient's norm is {norm:.4g}, {z:.0f} deviations above before"))
        if figures.learning_rate < config.min_learning_rate and figures.learning_rate >= _PLANNED * figures.peak:
            found.append(("low-learning-rate", f"Learning rate very low: {figures.learning_rate:.3g}"))
        return found

    def _z_loss(self, loss: float) -> float:
        if not self._losses:
            return 0.0
        level = sorted(self._losses)[len(self._losses) // 2]
        return robust_z(loss, self._losses, _LEAST_LOSS * max(1.0, level))

    def _anomaly(self, step: int, kind: str, what: str, figures: Figures) -> None:
        """Warn, stop or go back. A learning rate is the user's own, and only worth a warning."""
        action = self._config.anomalies
        if action in ("stop", "recover") and kind in _ANOMALIES:
            raise Offence(step, _ANOMALIES[kind], kind, what, "stop" if action == "stop" else "recover", figures)
        self._warn(step, kind, what)

    def _remember(self, figures: Figures) -> None:
        if figures.labels and self._config.anomalies != "off":
            self._losses = [*self._losses, figures.loss / figures.labels][-self._config.window :]
            self._norms = [*self._norms, _log(figures.grad_norm)][-self._config.window :]

    def _warn(self, step: int, kind: str, what: str) -> None:
        """Say it, unless it has been said within the last window of steps."""
        before = self._said.get(kind)
        if before is None or step - before >= self._config.window or step < before:
            self._said[kind] = step
            self._say(message=f"step {step}: {what}; what helps: {advice(kind)}", kind=kind, step=step)


def _log(norm: float) -> float:
    return math.log(max(norm, 1e-30))
