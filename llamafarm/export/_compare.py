"""The gates: does what was written answer as the model that was trained?

Each step is compared with the one before, in float32, so that no tolerance has to make room for rounding: the merged
model with the adapter, what is read back from disk with what was written. Only the last check, tokens, sees rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamafarm.errors import LlamaFarmError
from llamafarm.export._probe import Gap, Probe
from llamafarm.export._reload import reload_tokenizer
from llamafarm.export.prompts import encode
from llamafarm.export.report import Check

TOLERANCE = 1e-5
"""Of the largest logit: float32 carries 6e-8 a step, and merges of deep models were measured below 1e-6."""


def equal_logits(name: str, found: Gap) -> Check:
    """Whether two models are the same but for the order of float32 sums."""
    allowed = TOLERANCE * max(found.peak, 1.0)
    measured = f"logits differ by {found.largest:.2g} at most, {allowed:.2g} is allowed"
    return Check(name, found.largest <= allowed, measured)


def adapter_matters(effect: Gap, name: str) -> Check:
    """Whether the model answers otherwise than its base: if not, something that was trained is lost."""
    measured = f"logits differ from the base's by {effect.largest:.2g} at most"
    if effect.largest == 0:
        measured = "it answers exactly as the base does: nothing of what was trained is in it"
    return Check(name, effect.largest > 0, measured, "LF-QUALITY-002")


def same_tokens(name: str, probe: Probe, found: Sequence[Sequence[int]], *, rounded: bool) -> Check:
    """Whether greedy decoding gives the same tokens; with rounded weights ties may fall the other way now and then."""
    same = sum(list(one) == list(other) for one, other in zip(probe.answers, found, strict=True))
    total = len(probe.answers)
    needed = (total + 1) // 2 if rounded else total
    measured = f"{same} of {total} answers are the same token by token, {needed} are needed"
    return Check(name, same >= needed, measured)


def tokenizer_checks(folder: Path, trained: Any, examples: Sequence[Any]) -> list[Check]:
    """Whether the tokenizer in a folder makes of prompts what the one of training does.

    Args:
        folder: Where it was written.
        trained: The tokenizer of training.
        examples: Prompts as `encode` takes them.
    """
    try:
        found = reload_tokenizer(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [Check("tokenizer", False, f"it cannot be loaded: {_line(error)}", "LF-QUALITY-003")]
    checks = []
    if trained.chat_template is not None:
        same = found.chat_template == trained.chat_template
        how = "the same" if same else ("missing" if found.chat_template is None else "another one")
        checks.append(Check("chat template", same, how, "LF-QUALITY-003"))
    try:
        one = [encode(example, trained) for example in examples]
        other = [encode(example, found) for example in examples]
    except (LlamaFarmError, ValueError, TypeError, KeyError) as error:
        return [*checks, Check("tokenizer", False, f"a prompt cannot be encoded: {_line(error)}", "LF-QUALITY-003")]
    differing = sum(a != b for a, b in zip(one, other, strict=True))
    specials = [
        name
        for name in ("bos_token", "eos_token", "pad_token")
        if getattr(trained, name) is not None and getattr(trained, f"{name}_id") != getattr(found, f"{name}_id")
    ]
    measured = f"{differing} of {len(one)} prompts get other ids" if differing else "the same ids"
    measured += f"; other ids of {', '.join(specials)}" if specials else ""
    return [*checks, Check("tokenizer", not differing and not specials, measured, "LF-QUALITY-003")]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
