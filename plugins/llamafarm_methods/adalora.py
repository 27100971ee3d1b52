"""The method `adalora`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafarm.api import RunContext, TrainingStart, TrainingStep
from llamafarm_methods.bridge import Bridge, PeftMethod

if TYPE_CHECKING:
    import torch
    from torch import nn

_NOT_KNOWN_YET = 1 << 40
"""Steps, until the training says how many there are."""


def _has_ranks_to_take(config: Any) -> str:
    if config.target_r >= config.init_r:
        return f"target_r ({config.target_r}) has to be less than init_r ({config.init_r}): ranks are only taken away"
    return ""


class Adalora(
    PeftMethod,
    bridge=Bridge(
        "adalora",
        "AdaLoraConfig",
        {
            "target_r": 8,
            "init_r": 12,
            "lora_alpha": 8,
            "lora_dropout": 0.0,
            "tinit": 0,
            "tfinal": 0,
            "deltaT": 1,
            "beta1": 0.85,
            "beta2": 0.85,
            "orth_reg_weight": 0.5,
        },
        {"init_lora_weights": True, "bias": "none", "rank_pattern": None, "total_step": _NOT_KNOWN_YET},
        bits=frozenset({4, 8}),
        kept=3,  # importance, its mean, and its uncertainty
        check=_has_ranks_to_take,
    ),
):
    """Takes ranks away from layers that need them least, while it trains (https://arxiv.org/abs/2303.10512)."""

    def begin(self, model: nn.Module, start: TrainingStart, run: RunContext) -> None:
        """Plan when ranks are taken away.

        Raises:
            StrategyError: If the training is too short for it.
        """
        from llamafarm_methods import _adalora

        _adalora.begin(model, start.steps)

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        """How far the directions are from orthogonal."""
        from llamafarm_methods import _adalora

        return _adalora.penalty(model)

    def stepped(self, model: nn.Module, step: TrainingStep, run: RunContext) -> None:
        """Weigh the step's gradients, and take ranks away when it is time."""
        from llamafarm_methods import _adalora

        if ranks := _adalora.stepped(model, step.step):
            each = f"{min(ranks)} to {max(ranks)} in each of {len(ranks)} layers"
            run.emit("notice", message=f"adalora: {sum(ranks)} ranks are left, {each}")

    def state(self, model: nn.Module) -> Mapping[str, Any]:
        """How important each weight was so far, and which ranks are left."""
        from llamafarm_methods import _adalora

        return _adalora.state(model)

    def load_state(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Go on weighing."""
        from llamafarm_methods import _adalora

        _adalora.load_state(model, state)

    def put_back(self, model: nn.Module, folder: Path) -> bool:
        """Tell PEFT which ranks the saved weights have."""
        from llamafarm_methods import _adalora

        _adalora.expect_ranks(model, folder)
        return False
