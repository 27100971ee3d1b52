"""Raise the rank of LoRA adapters in the middle of training, with the function kept and the optimizer's memory too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from llamafarm.errors import ModelError


def grow(model: Any, optimizer: torch.optim.Optimizer, rank: int) -> None:
    """Raise the rank of every adapter of the model to `rank`, in place.

    A gets new random rows and B new columns of zeros, so that B·A and with it the model's answers stay exactly as they
    are; the scale (alpha / r, or alpha / sqrt(r)) stays too. The new parts start without optimizer state, as all did at
    the first step; the old parts keep theirs.

    Args:
        model: A PEFT model with LoRA (or DoRA) adapters of one rank.
        optimizer: Holds the adapters' parameters; its state is of the parameters' shapes or scalar.
        rank: Above the rank that the adapters have.

    Raises:
        ModelError: If there are no such adapters, they have several ranks, or `rank` is not above theirs.
    """
    layers = [module for module in model.modules() if hasattr(module, "lora_A") and "default" in module.lora_A]
    ranks = {int(layer.r["default"]) for layer in layers}
    if len(ranks) != 1:
        have = f"ranks {sorted(ranks)}" if ranks else "no LoRA adapters"
        raise ModelError.of("LF-MODEL-080", f"only adapters of one rank can grow; the model has {have}")
    (old,) = ranks
    if rank <= old:
        raise ModelError.of("LF-MODEL-080", f"the adapters have rank {old}: they cannot grow to {rank}")
    for layer in layers:
        a, b = layer.lora_A["default"], layer.lora_B["default"]
        _replace(a, optimizer, lambda tensor: _longer(tensor, rank, 0), _new_rows)
        _replace(b, optimizer, lambda tensor: _longer(tensor, rank, 1), None)
        a.out_features = b.in_features = rank
        layer.r["default"] = rank
    config = model.peft_config["default"]
    factor = math.sqrt(rank / old) if config.use_rslora else rank / old
    for layer in layers:
        layer.lora_alpha["default"] *= factor
    config.r, config.lora_alpha = rank, config.lora_alpha * factor


def _replace(
    linear: nn.Linear,
    optimizer: torch.optim.Optimizer,
    longer: Callable[[torch.Tensor], torch.Tensor],
    fill: Callable[[torch.Tensor, int], None] | None,
) -> None:
    """Give a layer a larger weight, and the optimizer the new one with what it remembers of the old one."""
    old = linear.weight
    weight = longer(old.detach())
    if fill is not None:
        fill(weight, old.shape[0])
    linear.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    for group in optimizer.param_groups:
        group["params"] = [linear.weight if parameter is old else parameter for parameter in group["params"]]
    state = optimizer.state.pop(old, None)
    if state:
        optimizer.state[linear.weight] = {
            name: longer(value) if isinstance(value, torch.Tensor) and value.shape == old.shape else value
            for name, value in state.items()
        }


def _longer(tensor: torch.Tensor, rank: int, dimension: int) -> torch.Tensor:
    shape = list(tensor.shape)
    shape[dimension] = rank - shape[dimension]
    return torch.cat([tensor, tensor.new_zeros(shape)], dimension)


def _new_rows(weight: torch.Tensor, start: int) -> None:
    """Random, with the bound that PEFT draws A with: Kaiming's, for the inputs of the layer."""
    bound = 1 / math.sqrt(weight.shape[1])
    weight[start:].uniform_(-bound, bound)


def stages(ranks: tuple[int, ...], steps: int) -> tuple[int, ...]:
    """Steps of each rank: equal shares, the remainder to the last.

    Raises:
        ValueError: If there are fewer steps than ranks.
    """
    share = steps // len(ranks)
    if share < 1:
        raise ValueError(f"{steps} steps are too few for {len(ranks)} ranks")
    return (*(share for _ in ranks[:-1]), steps - share * (len(ranks) - 1))
