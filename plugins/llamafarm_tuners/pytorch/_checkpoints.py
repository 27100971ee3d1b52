"""`checkpoint-N` and `checkpoint-best`, with rotation."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from llamafarm_tuners.pytorch._store import Trained, link_files, replaced_folder, write_model
from llamafarm_tuners.pytorch.journal import write_json

BEST = "checkpoint-best"
_STATE = "trainer_state.json"


class Checkpoints:
    """The checkpoints of a run.

    Attributes:
        saved: Steps whose checkpoint exists, in order.
    """

    def __init__(
        self, folder: Path, trained: Trained, limit: int | None, state: Callable[[int], Mapping[str, Any]]
    ) -> None:
        self.saved: list[int] = []
        self._folder, self._trained, self._limit, self._state = folder, trained, limit, state

    def save(self, step: int, best_step: int | None) -> Path:
        """Write `checkpoint-<step>`, and remove the oldest beyond the limit, but never the best or the newest."""
        path = self._folder / f"checkpoint-{step}"
        self._write(path, step, self._folder / BEST if step == best_step else None)
        self.saved.append(step)
        removable = [old for old in self.saved[:-1] if old != best_step]
        kept = len(self.saved) - (best_step in self.saved[:-1])
        for old in removable[: max(0, kept - (self._limit or kept))]:
            shutil.rmtree(self._folder / f"checkpoint-{old}")
            self.saved.remove(old)
        return path

    def save_best(self, step: int) -> Path:
        """Write `checkpoint-best` from the model as it is now."""
        self._write(self._folder / BEST, step, None)
        return self._folder / BEST

    def _write(self, path: Path, step: int, same: Path | None) -> None:
        with replaced_folder(path) as temporary:
            if same:
                link_files((file for file in same.iterdir() if file.name != _STATE), temporary)
            else:
                write_model(self._trained, temporary)
            write_json(temporary / _STATE, self._state(step))


def restore(model: nn.Module, folder: Path) -> None:
    """Put the weights of a checkpoint back into the model it was made of."""
    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
        return
    from transformers import AutoModelForCausalLM

    weights = AutoModelForCausalLM.from_pretrained(folder, dtype=next(model.parameters()).dtype)
    model.load_state_dict(weights.state_dict())
