"""AdaLoRA within a training: PEFT decides which ranks go; when, and what is kept of it, is said here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llamafarm.errors import StrategyError
from llamafarm.models.adapter_config import read_adapter_config


def begin(model: Any, steps: int) -> None:
    """Plan the rounds over a training's steps.

    Raises:
        StrategyError: If there are too few.
    """
    config = model.peft_config["default"]
    last = steps - config.tfinal
    # the first step's gradients say what the second one may take away
    if max(config.tinit, 1) >= last:
        planned = f"{steps} steps, tinit {config.tinit}, tfinal {config.tfinal}"
        message = f"adalora has no steps to take ranks away in: {planned}"
        hint = "train longer, or lower tinit and tfinal: together they are to be less than the steps"
        raise StrategyError.of("LF-TRAIN-070", message, hint=hint)
    config.total_step = steps


def penalty(model: Any) -> torch.Tensor | None:
    """The mean of ‖P·Pᵀ - I‖ over A and Bᵀ of all layers, Frobenius norms, times `orth_reg_weight`; eq. (4)."""
    weight = model.peft_config["default"].orth_reg_weight
    if not weight:
        return None
    sides = [
        side
        for name, parameter in model.named_parameters()
        if name.endswith((".lora_A.default", ".lora_B.default"))
        for side in [parameter if ".lora_A." in name else parameter.T]
    ]
    apart = [torch.linalg.matrix_norm(side @ side.T - torch.eye(len(side), device=side.device)) for side in sides]
    return weight * torch.stack(apart).mean()


def stepped(model: Any, step: int) -> list[int] | None:
    """Weigh the gradients, and take ranks away; the ranks of all layers when they have become final."""
    tuner, config = model.base_model, model.peft_config["default"]
    last = config.total_step - config.tfinal
    if step < last:
        tuner.update_and_allocate(step)
        config.rank_pattern = None  # what was taken away may come back: until the last round everything is saved
        return None
    if config.rank_pattern is not None:
        tuner.update_and_allocate(step)
        return None
    tuner.update_and_allocate(last)  # even if that very step was left out
    left: Mapping[str, list[bool]] = config.rank_pattern or {}
    return [sum(kept) for kept in left.values()]


def state(model: Any) -> Mapping[str, Any]:
    """Everything that the next round needs."""
    config, allocator = model.peft_config["default"], model.base_model.rankallocator
    return {
        "steps": config.total_step,
        "kept": config.rank_pattern,
        "sensitivity": dict(allocator.exp_avg_ipt),
        "uncertainty": dict(allocator.exp_avg_unc),
    }


def load_state(model: Any, kept: Mapping[str, Any]) -> None:
    """Go on from there."""
    config, allocator = model.peft_config["default"], model.base_model.rankallocator
    config.total_step, config.rank_pattern = kept["steps"], kept["kept"]
    device = next(model.parameters()).device
    allocator.exp_avg_ipt = {name: tensor.to(device) for name, tensor in kept["sensitivity"].items()}
    allocator.exp_avg_unc = {name: tensor.to(device) for name, tensor in kept["uncertainty"].items()}
    allocator.ipt = dict(allocator.exp_avg_ipt)  # computed anew at each step; PEFT looks here for what it knows


def expect_ranks(model: Any, folder: Path) -> None:
    """Which ranks the weights in a folder have."""
    model.peft_config["default"].rank_pattern = read_adapter_config(folder).get("rank_pattern")
