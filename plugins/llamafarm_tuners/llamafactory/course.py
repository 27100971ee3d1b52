"""What LLaMA-Factory tells of its course → the events of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamafarm.api import RunContext
from llamafarm.errors import NumericError


class Course:
    """Passes on what the process tells.

    Attributes:
        trainable: Parameters that are trained.
        total: All parameters.
        error: What it reported of its own failure.
        stopped: Whether it ended early because the user asked.
        step: The last step.
    """

    def __init__(self, run: RunContext, base: str, method: str, board: Any, output: Path) -> None:
        self.trainable = self.total = self.step = self.steps = 0
        self.error: Mapping[str, Any] | None = None
        self.stopped = False
        self._run, self._base, self._method, self._board, self._output = run, base, method, board, output
        self._started = time.perf_counter()

    def hear(self, line: Mapping[str, Any]) -> None:
        """Take a line in.

        Raises:
            NumericError: If the loss is not finite.
        """
        handler = getattr(self, f"_{line.get('type')}", None)
        if handler is not None:
            handler({key: value for key, value in line.items() if key != "type"})

    def _model(self, told: Mapping[str, Any]) -> None:
        self.trainable, self.total, self.steps = int(told["trainable"]), int(told["total"]), int(told["steps"])
        self._run.emit(
            "model",
            trainable_parameters=self.trainable,
            total_parameters=self.total,
            base=self._base,
            method=self._method,
        )
        self._run.emit("phase", name="training")
        self._started = time.perf_counter()

    def _log(self, told: Mapping[str, Any]) -> None:
        step = self.step = int(told["step"])
        if "loss" in told:
            self._training(step, told)
        elif any(name.startswith("eval_") for name in told):
            metrics = {name: value for name, value in told.items() if name.startswith("eval_")}
            self._run.emit("eval", step=step, total_steps=self.steps, epoch=told.get("epoch", 0), **metrics)
            self._draw("eval", {name.removeprefix("eval_"): value for name, value in metrics.items()}, step)

    def _training(self, step: int, told: Mapping[str, Any]) -> None:
        if not math.isfinite(told["loss"]):
            message = f"step {step}: the loss is {told['loss']}"
            raise NumericError.of("LF-NUMERIC-001", message, hint="lower learning_rate; look at the rows")
        elapsed = time.perf_counter() - self._started
        figures = {name: told[name] for name in ("loss", "learning_rate", "grad_norm", "reward") if name in told}
        self._run.emit(
            "log",
            step=step,
            total_steps=self.steps,
            epoch=told.get("epoch", 0),
            elapsed_s=round(elapsed, 3),
            remaining_s=round(elapsed / step * max(0, self.steps - step), 3),
            **figures,
        )
        self._draw("train", {**figures, "epoch": told.get("epoch", 0)}, step)

    def _checkpoint(self, told: Mapping[str, Any]) -> None:
        path = self._output / f"checkpoint-{told['step']}"
        self._run.emit("checkpoint", step=told["step"], path=str(path), best=False)

    def _end(self, told: Mapping[str, Any]) -> None:
        self.stopped = bool(told["stopped"])

    def _error(self, told: Mapping[str, Any]) -> None:
        self.error = told

    def _draw(self, group: str, values: Mapping[str, Any], step: int) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)
            self._board.flush()
