"""What a training is made from, written into each checkpoint, and what a difference means for going on. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llamafarm.api import PreparedData, RunPlan
from llamafarm.errors import Problem, StrategyError
from llamafarm.models.identity import base_digest, template_digest, tokenizer_digest
from llamafarm.versions import versions
from llamafarm_tuners.pytorch.config import PytorchConfig
from llamafarm_tuners.pytorch.precision import base_format

_NEVER: Final[Mapping[str, str]] = {
    "data": "the rows, their order or their split",
    "base": "the weights of the base model",
    "tokenizer": "the tokenizer",
    "template": "the chat template",
}
_WITH_FLAG: Final[Mapping[str, str]] = {
    "processes": "the number of processes",
    "precision": "the precision",
    "base_dtype": "the base's format",
}
_NOTED: Final[Mapping[str, str]] = {"device": "the device"}


def identity(
    config: PytorchConfig, plan: RunPlan, data: PreparedData, tokenizer: Any, *, processes: int, precision: str
) -> dict[str, Any]:
    """What checkpoints and results of a run are made from, as plain JSON."""
    base = config.base_model
    return {
        "data": data.digest,
        "base": base_digest(base.huggingface_id, base.revision) if base.huggingface_id else None,
        "tokenizer": tokenizer_digest(tokenizer),
        "template": template_digest(tokenizer),
        "processes": processes,
        "precision": precision,
        "base_dtype": base_format(config, plan),
        "device": f"{plan.device.type} ({plan.device.name})",
        "seed": config.training.seed,
        "methods": [method.name for method in plan.methods],
        "versions": versions(),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, allow: bool) -> list[str]:
    """Why a run that goes on from a checkpoint may end otherwise than without interruption.

    Args:
        before: The checkpoint's identity.
        now: The run's.
        allow: Accept what changes the course of the training.

    Raises:
        StrategyError: If the checkpoint cannot be gone on from, or not without `allow`.
    """
    changed = [key for key in before if key in now and before[key] != now[key]]
    problems = [_never(key, before, now) for key in changed if key in _NEVER]
    if not allow:
        problems += [_flagged(key, before, now) for key in changed if key in _WITH_FLAG]
    if problems:
        raise StrategyError(problems)
    names = {**_WITH_FLAG, **_NOTED}
    noted = [f"{names[key]} was {before[key]} and is {now[key]}" for key in changed if key in names]
    old, new = before.get("versions", {}), now.get("versions", {})
    moved = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return [*noted, *(f"{name} was {old.get(name)} and is {new.get(name)}" for name in moved)]


def _never(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Problem:
    message = f"{_NEVER[key]} changed since the checkpoint (digest {_short(before[key])}, now {_short(now[key])})"
    return Problem("LF-TRAIN-051", message, hint="start a new run, or bring back what it was")


def _flagged(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Problem:
    message = f"{_WITH_FLAG[key]} was {before[key]} and is {now[key]} now"
    return Problem("LF-TRAIN-052", message, hint="add --allow-changes to go on all the same, not exactly")


def _short(digest: Any) -> str:
    return str(digest)[:12]
