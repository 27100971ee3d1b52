"""Which models are measured, and by which strategy their rows are read."""

from __future__ import annotations

import re
from pathlib import Path

from llamafarm.errors import ModelError
from llamafarm.models.adapter_config import base_named_by
from llamafarm.models.identity import require_identity
from llamafarm.models.locate import locate

_CHECKPOINT = re.compile(r"checkpoint-(\d+|best)")


def base_of(model: str) -> str | None:
    """The base model that an adapter names, or None for a whole model."""
    located = locate(model)
    if not located.is_adapter or located.folder is None:
        return None
    return base_named_by(located.folder)


def models_to_measure(model: str, baseline: str, *, every: bool) -> list[str]:
    """The baseline if there is one, the run's checkpoints if all are wanted, and last the model itself.

    Args:
        model: What is asked about.
        baseline: A model, `none`, or `auto`: the base of an adapter.
        every: Also each `checkpoint-N` of the run, by step, and `checkpoint-best`.

    Raises:
        ModelError: If one of them is not there, there are no checkpoints, or an adapter is not as it was trained.
    """
    locate(model)
    names = []
    compared = base_of(model) if baseline == "auto" else None if baseline == "none" else baseline
    if compared is not None:
        locate(compared)
        names.append(compared)
    if every:
        names += _checkpoints(model)
    chosen = [*names, model]
    for one in chosen:
        _require_whole(one)
    return chosen


def _require_whole(model: str) -> None:
    """Refuse what will be refused anyway before the first is measured, which may take hours."""
    folder, base = locate(model).folder, base_of(model)
    if folder is not None and base is not None:
        require_identity(folder, base)


def own_strategy(model: str) -> str | None:
    """The resolved strategy that the run of a model keeps, for its result and for its checkpoints."""
    folder = locate(model).folder
    if folder is None:
        return None
    for place in (folder, folder.parent) if _CHECKPOINT.fullmatch(folder.name) else (folder,):
        if (place / "llamafarm" / "resolved.yaml").is_file():
            return str(place / "llamafarm" / "resolved.yaml")
    return None


def _checkpoints(model: str) -> list[str]:
    folder = Path(model)
    found = [path for path in folder.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    if not found:
        hint = "training.save_steps says how often they are written; give the run's folder"
        raise ModelError.of("LF-MODEL-150", f"no checkpoint-N in {model}", hint=hint)
    numbered = sorted(found, key=lambda path: (path.name.endswith("best"), _step(path)))
    return [str(path) for path in numbered]


def _step(path: Path) -> int:
    last = path.name.rpartition("-")[2]
    return int(last) if last.isdigit() else 0
