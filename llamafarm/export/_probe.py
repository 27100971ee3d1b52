"""What a model says to some prompts: the tokens it would take, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

NEW_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Probe:
    """Prompts as ids, each with the tokens that the trained model takes after it."""

    prompts: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Gap:
    """How far two models are from one another.

    Attributes:
        largest: Largest difference of a logit.
        peak: Largest logit of the first, in absolute value.
        relative: Root mean square of the difference over that of the first.
        rms: Root mean square of the difference.
    """

    largest: float
    peak: float
    relative: float
    rms: float


@torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is not type-checked here
def answer(model: Any, prompts: Sequence[Sequence[int]], never: int | None = None) -> list[list[int]]:
    """The likeliest tokens after each prompt, 16 of them whatever they are, but `never`; keys and values are cached."""
    answers = []
    for prompt in prompts:
        output = model(torch.tensor([list(prompt)], device=model.device), use_cache=True)
        tokens: list[int] = []
        for _ in range(NEW_TOKENS):
            scores = output.logits[0, -1]
            if never is not None:
                scores[never] = -torch.inf
            tokens.append(int(scores.argmax()))
            following = torch.tensor([tokens[-1:]], device=model.device)
            output = model(following, past_key_values=output.past_key_values, use_cache=True)
        answers.append(tokens)
    return answers


@torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is not type-checked here
def logits(model: Any, probe: Probe) -> list[torch.Tensor]:
    """Logits where the answers' tokens are chosen: a float32 tensor (tokens, vocabulary) per prompt, on the CPU."""
    found = []
    for prompt, tokens in zip(probe.prompts, probe.answers, strict=True):
        output = model(torch.tensor([[*prompt, *tokens]], device=model.device), use_cache=False)
        first = len(prompt) - 1
        found.append(output.logits[0, first : first + len(tokens)].float().cpu())
    return found


def gap(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> Gap:
    """Compare two models' logits; a vocabulary of another size counts as an infinite difference."""
    if any(a.shape != b.shape for a, b in zip(one, other, strict=True)):
        return Gap(float("inf"), 1.0, float("inf"), float("inf"))
    a, b = torch.cat(list(one)), torch.cat(list(other))
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return Gap(float("inf"), 1.0, float("inf"), float("inf"))
    difference = a - b
    rms = float(difference.square().mean().sqrt())
    return Gap(
        float(difference.abs().max()), float(a.abs().max()), rms / max(float(a.square().mean().sqrt()), 1e-30), rms
    )
