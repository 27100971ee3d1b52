"""Why LLaMA-Factory ended: one clear error instead of its traceback."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamafarm.api import RunPlan
from llamafarm.errors import (
    DataError,
    DiskError,
    HardwareError,
    LlamaFarmError,
    ModelError,
    NetworkError,
    PluginError,
    StrategyError,
)

_KINDS: tuple[tuple[type[LlamaFarmError], tuple[str, ...]], ...] = (
    (DiskError, ("No space left on device", "Disk quota exceeded")),
    (NetworkError, ("offline mode", "Max retries exceeded", "ConnectionError", "couldn't connect")),
    (ModelError, ("Failed to load", "does not appear to have a file", "state_dict", "arget modules",
                  "does not recognize this architecture")),
    (DataError, ("dataset", "Cannot find valid samples")),
    (StrategyError, ("HfArgumentParser", "Template", "hparams", "is not a valid")),
)  # fmt: skip
_MEMORY = ("out of memory", "can't allocate memory", "OutOfMemory")
_LINES = 3


def failure(
    code: int, error: Mapping[str, Any] | None, log: Path, checkpoints: list[str], plan: RunPlan, *, kept: bool
) -> LlamaFarmError:
    """The error to raise.

    Args:
        code: Exit code of the process; negative: the signal that ended it.
        error: What it reported itself, if it could.
        log: Everything that it said.
        checkpoints: Names of the checkpoints that it left.
        plan: The run's plan.
        kept: Whether the run directory stays, and with it the log.
    """
    where = str(log) if kept else ""
    saved = f"; {', '.join(checkpoints)} stay, to go on with resume_from_checkpoint" if checkpoints else ""
    if error is None and code < 0:
        name = signal.Signals(-code).name
        reason = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        return PluginError.of("LF-PLUGIN-077", f"LLaMA-Factory was ended by {name}{reason}{saved}", where=where)
    text = f"{error['kind']}: {error['message']}" if error else ""
    if any(word in text for word in _MEMORY):
        return HardwareError.of(
            "LF-HARDWARE-010",
            f"out of memory on {plan.device.name}, in LLaMA-Factory{saved}",
            hint="set training.batch_size: 1 and raise gradient_accumulation_steps to match (the result is the same); "
            "then gradient_checkpointing: true, a smaller max_seq_length, quantization_bit: 4",
        )
    cause = (error["message"] if error else "") or last_lines(log, _LINES)
    kind = next((kind for kind, words in _KINDS if any(word in text for word in words)), PluginError)
    message = " ".join(str(cause).split())[:600]
    return kind.of("LF-PLUGIN-075", f"LLaMA-Factory failed: {message}{saved}", where=where)


def last_lines(log: Path, count: int) -> str:
    """The end of what it said."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "it said nothing"
    return " | ".join([line.strip() for line in lines if line.strip()][-count:]) or "it said nothing"
