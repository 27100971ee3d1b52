"""Stops a run at the first value that is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llamafarm.errors import NumericError, Problem

_MOST_SKIPS = 25
_HINT = "lower learning_rate, or alpha, and look at the data; use bf16 or fp32 instead of fp16"


class FiniteGuard:
    """Looks at each step before its update is applied, so that no weight is ever touched by a bad one."""

    def __init__(self, *, scaled: bool) -> None:
        """With `scaled` (fp16), overflowing gradients are expected: such a step is skipped at a smaller scale."""
        self._scaled, self._skipped = scaled, 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know."""
        return {"skipped": self._skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._skipped = state["skipped"]

    def check(self, step: int, loss: float, grad_norm: float) -> None:
        """Check a step.

        Raises:
            NumericError: If its loss or its gradient is not finite.
        """
        if not math.isfinite(loss):
            raise _stop("LF-NUMERIC-001", step, f"the loss is {loss}")
        if math.isfinite(grad_norm):
            self._skipped = 0
            return
        self._skipped += 1
        if not self._scaled:
            raise _stop("LF-NUMERIC-002", step, f"the gradient's norm is {grad_norm}")
        if self._skipped > _MOST_SKIPS:
            raise _stop("LF-NUMERIC-002", step, f"the gradient has overflowed {self._skipped} times in a row")

    def check_evaluation(self, loss: float) -> None:
        """Check the loss of an evaluation.

        Raises:
            NumericError: If it is not finite.
        """
        if not math.isfinite(loss):
            raise NumericError(
                [Problem("LF-NUMERIC-004", f"the held-out loss is {loss}: the model is not saved", hint=_HINT)]
            )


def _stop(id_: str, step: int, what: str) -> NumericError:
    return NumericError([Problem(id_, f"step {step}: {what}; stopped before the weights changed", hint=_HINT)])
