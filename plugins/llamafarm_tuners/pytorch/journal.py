"""The files that record a run's course, in the field's formats: trainer_log.jsonl and trainer_state.json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from llamafarm.api import TrainingConfig
from llamafarm.errors import DiskError
from llamafarm.files import sync_file, sync_folder, write_atomically
from llamafarm_tuners.pytorch.best import BestSoFar
from llamafarm_tuners.pytorch.meters import clock
from llamafarm_tuners.pytorch.schedule import Sizes


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Say in our words what the file system refuses.

    Raises:
        DiskError: If it does.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DiskError.of(
            "LF-DISK-010",
            f"cannot write {path.name}: {reason}",
            where=str(path),
            hint="free space or choose another output_dir; what was written before is intact",
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a file that is there whole or not at all."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def trainer_state(
    step: int, sizes: Sizes, training: TrainingConfig, best: BestSoFar, history: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The content of `trainer_state.json` at a step, in the format that other tools plot."""
    return {
        "best_global_step": best.step,
        "best_metric": best.value,
        "best_model_checkpoint": "checkpoint-best" if best.step is not None else None,
        "epoch": sizes.epoch(step),
        "eval_steps": training.eval_interval[1],
        "global_step": step,
        "is_world_process_zero": True,
        "log_history": list(history),
        "logging_steps": training.logging_steps,
        "max_steps": sizes.steps,
        "num_train_epochs": math.ceil(sizes.steps / sizes.steps_per_epoch),
        "save_steps": training.save_steps,
        "train_batch_size": training.batch_size,
    }


class Journal:
    """Appends to `trainer_log.jsonl`, and keeps the history for `trainer_state.json`.

    A disk that takes nothing for a while costs no line: what could not be written is written with the next.

    Attributes:
        history: Entries of `log_history`.
        failure: What the disk said last, as long as lines wait.
    """

    def __init__(self, folder: Path | None, total_steps: int) -> None:
        """Start the file anew; without a folder (on all processes but one) nothing is written."""
        self.history: list[dict[str, Any]] = []
        self.failure: str | None = None
        self._lines: list[str] = []
        self._written = 0
        self._total_steps = total_steps
        self._path = folder / "trainer_log.jsonl" if folder else None
        self._write()

    def state_dict(self) -> dict[str, Any]:
        """All lines so far."""
        return {"history": list(self.history), "lines": list(self._lines)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there: the file holds these lines and no others."""
        self.history, self._lines, self._written = list(state["history"]), list(state["lines"]), 0
        self._write()

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
        self._lines.append(json.dumps({k: v for k, v in line.items() if v is not None}, allow_nan=False))
        self._write()

    def finish(self, step: int, epoch: float, elapsed: float, **values: float | None) -> None:
        """Append the last line; also a run that stopped early is then at 100 percent. A loss of power takes none back.

        Raises:
            DiskError: If the disk still does not take the lines.
        """
        self._total_steps = step
        self.log(step, epoch, elapsed, 0.0, **values)
        if self._path:
            with on_disk(self._path):
                if self.failure:
                    raise OSError(self.failure)
                sync_file(self._path)
                sync_folder(self._path.parent)

    def remember(self, **entry: float) -> None:
        """Add an entry to `log_history`."""
        self.history.append(entry)

    def _write(self) -> None:
        """Append what is not in the file yet. After a failure it may hold half a line, and is written anew."""
        if not self._path:
            return
        anew = self._written == 0 or self.failure is not None
        text = "".join(f"{line}\n" for line in self._lines[0 if anew else self._written :])
        try:
            if anew:
                write_atomically(self._path, text)
            else:
                with self._path.open("a", encoding="utf-8", newline="\n") as file:
                    file.write(text)
        except OSError as error:
            self.failure = error.strerror or str(error)
        else:
            self._written, self.failure = len(self._lines), None
