"""The files that record a run's course, in the field's formats: trainer_log.jsonl and trainer_state.json."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamafarm_tuners.pytorch.meters import clock


def write_json(path: Path, value: Any) -> None:
    """Write a file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class Journal:
    """Appends to `trainer_log.jsonl`, and keeps the history for `trainer_state.json`.

    Attributes:
        history: Entries of `log_history`.
    """

    def __init__(self, folder: Path, total_steps: int) -> None:
        self.history: list[dict[str, Any]] = []
        self._total_steps = total_steps
        self._path = folder / "trainer_log.jsonl"
        self._path.write_text("", encoding="utf-8")

    def log(self, step: int, epoch: float, elapsed: float, remaining: float, **values: float | None) -> None:
        """Append a line (`loss`, `eval_loss`, `lr` …; None is left out) that a reader sees at once."""
        line = {
            "current_steps": step,
            "total_steps": self._total_steps,
            **values,
            "epoch": epoch,
            "percentage": round(100 * step / self._total_steps, 2),
            "elapsed_time": clock(elapsed),
            "remaining_time": clock(remaining),
        }
        self._append(line)

    def finish(self, step: int, epoch: float, elapsed: float, **values: float | None) -> None:
        """Append the last line; also a run that stopped early is then at 100 percent."""
        self._total_steps = step
        self.log(step, epoch, elapsed, 0.0, **values)

    def remember(self, **entry: float) -> None:
        """Add an entry to `log_history`."""
        self.history.append(entry)

    def _append(self, line: Mapping[str, Any]) -> None:
        text = json.dumps({key: value for key, value in line.items() if value is not None}, allow_nan=False)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")
