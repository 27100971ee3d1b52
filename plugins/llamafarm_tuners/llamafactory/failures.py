"""Why LLaMA-Factory ended: one clear error instead of its traceback."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamafarm.api import RunPlan
from llamafarm.errors import LlamaFarmError, Problem, error_for

_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("LF-DISK-010", ("No space left on device", "Disk quota exceeded")),
    ("LF-NET-001", ("offline mode", "Max retries exceeded", "ConnectionError", "couldn't connect")),
    ("LF-STRATEGY-091", ("HfArgumentParser", "arget modules", "Template", "is not a valid", "Undefined dataset")),
)
_OTHER = "LF-PLUGIN-075"
_MEMORY = ("out of memory", "can't allocate memory", "OutOfMemory")
_NO_SUCH_TOKEN = "index out of range in self"
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
        return error_for([Problem("LF-PLUGIN-077", f"LLaMA-Factory was ended by {name}{reason}{saved}", where)])
    text = f"{error['kind']}: {error['message']}" if error else ""
    if any(word in text for word in _MEMORY):
        hint = (
            "set training.batch_size: 1 and raise gradient_accumulation_steps to match (the result is the same); "
            "then gradient_checkpointing: true, a smaller max_seq_length, quantization_bit: 4"
        )
        return error_for(
            [Problem("LF-HARDWARE-010", f"out of memory on {plan.device.name}, in LLaMA-Factory{saved}", where, hint)]
        )
    if _NO_SUCH_TOKEN in text:
        message = f"LLaMA-Factory failed: a token is beyond the model's embeddings ({_NO_SUCH_TOKEN}){saved}"
        hint = "set a template of the model's own family: one of another adds its tokens to the tokenizer alone"
        return error_for([Problem("LF-STRATEGY-102", message, where, hint)])
    cause = (error["message"] if error else "") or last_lines(log, _LINES)
    id_ = next((id_ for id_, words in _KINDS if any(word in text for word in words)), _OTHER)
    message = " ".join(str(cause).split())[:600]
    return error_for([Problem(id_, f"LLaMA-Factory failed: {message}{saved}", where)])


def last_lines(log: Path, count: int) -> str:
    """The end of what it said."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "it said nothing"
    return " | ".join([line.strip() for line in lines if line.strip()][-count:]) or "it said nothing"
