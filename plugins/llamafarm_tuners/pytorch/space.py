"""Whether the disk has room for the checkpoints of a run, before anything is loaded. No torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, Final

from llamafarm.api import RunContext, RunPlan
from llamafarm.errors import DiskError
from llamafarm.models.identity import weight_files
from llamafarm_tuners.pytorch.config import PytorchConfig

MARGIN: Final = 32 * 2**20
"""Bytes for logs, tokenizer, model card and the like."""

_STATE_BYTES: Final[Mapping[str, int]] = {"sgd": 0, "adafactor": 0, "adamw_8bit": 2, "paged_adamw_8bit": 2}
"""Of the optimizer, for each trained parameter; 8 (two float32 moments) for all others."""
_LONGEST_HEADER: Final = 100 * 2**20
_NOT_ADAPTED: Final = ("embed", "lm_head", "wte", "wpe", "embed_out")


def require_space(config: PytorchConfig, plan: RunPlan, run: RunContext) -> None:
    """Refuse a disk on which not even two checkpoints fit; warn of one that is too small for all that are to be kept.

    A checkpoint is there only once it is complete, so that a new one and the one before always stand side by side.

    Raises:
        DiskError: If less than twice the size of a checkpoint, and a margin, is free.
    """
    if config.training.save_strategy == "no" and not any(method.adapter().changes_base for method in plan.methods):
        return
    size = checkpoint_bytes(config, plan)
    free = shutil.disk_usage(_existing(plan.output_dir)).free
    needed = 2 * size + MARGIN
    hint = "free space, choose another output_dir, or set training.save_strategy: no"
    if free < needed:
        message = f"{_readable(free)} are free, and two checkpoints need {_readable(needed)}"
        raise DiskError.of("LF-DISK-023", message, where=str(plan.output_dir), hint=hint)
    kept = (config.training.save_total_limit or 0) + 3  # the best, the result, and the one that is being written
    if config.training.save_total_limit and free < kept * size + MARGIN:
        message = f"{_readable(free)} are free; the checkpoints to be kept need about {_readable(kept * size + MARGIN)}"
        run.emit("warning", message=f"{message}: lower training.save_total_limit, or free space")


def checkpoint_bytes(config: PytorchConfig, plan: RunPlan) -> int:
    """About how large a checkpoint becomes, from the shapes in the base model's files; what is unknown counts nothing.

    For a model that is trained whole: its parameters and the optimizer's state. For an adapter with a rank `r`:
    `r * (inputs + outputs)` parameters for each matrix that it adapts.
    """
    training, base = config.training, config.base_model.huggingface_id
    state = _STATE_BYTES.get(training.optim, 8)
    matrices = list(_matrices(base, config.base_model.revision)) if base else []
    total = 0
    for spec in (method.adapter() for method in plan.methods):
        if spec.changes_base:
            parameters = sum(prod(shape) for _, shape in matrices)
            weight = 2 if training.pure_bf16 else 4
            total += parameters * (weight + (state if spec.kind == "full" else 0))
        elif isinstance(rank := spec.options.get("r"), int):
            targets = spec.options.get("target_modules")
            adapted = [shape for name, shape in matrices if len(shape) == 2 and _is_adapted(name, targets)]
            total += sum(rank * sum(shape) for shape in adapted) * (4 + state)
    return total


def _is_adapted(name: str, targets: Any) -> bool:
    module = name.removesuffix(".weight").rpartition(".")[2]
    if isinstance(targets, (list, tuple, set, frozenset)):
        return module in targets
    return not any(part in name for part in _NOT_ADAPTED)


def _matrices(base: str, revision: str | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor in a base model's safetensors files."""
    for file in weight_files(base, revision):
        if file.suffix == ".safetensors":
            yield from ((name, shape) for name, shape in _header(file))


def _header(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The shapes in a file; nothing if it is damaged, which loading it will say better."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            found = json.loads(stream.read(min(length, _LONGEST_HEADER)))
        entries = [(name, entry["shape"]) for name, entry in found.items() if name != "__metadata__"]
        shapes = [(str(name), tuple(int(size) for size in shape)) for name, shape in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    yield from shapes


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _readable(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"
