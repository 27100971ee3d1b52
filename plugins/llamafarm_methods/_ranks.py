"""Give adapters another rank while they are trained, their product B·A and their scale staying as they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from llamafarm.api import RunContext, TrainingStart, TrainingStep
from llamafarm.models.adapter_config import read_adapter_config
from llamafarm_methods.config import LoraConfig
from llamafarm_methods.ranks import rank_at, require_steps

NAME = "default"
"""PEFT's name of the adapter."""

_DRAWN = 0x5EED


def begin(model: nn.Module, config: LoraConfig, start: TrainingStart, run: RunContext) -> None:  # noqa: ARG001  # as all ways
    """Say with which rank training begins.

    Raises:
        StrategyError: If there are fewer steps than ranks.
    """
    require_steps(start.steps, config.ranks)
    run.emit("notice", message=f"Training with rank {config.first_rank}")


def stepped(model: nn.Module, config: LoraConfig, step: TrainingStep, run: RunContext) -> None:
    """Keep what a rank has learned in a folder of its own, and go on with the next."""
    now, coming = rank_of(model), rank_at(step.step + 1, step.steps, config.ranks)
    if coming != now or step.step == step.steps:
        step.save(f"checkpoint_r{now}")
    if coming != now:
        resize(model, coming, step.optimizer.state, run.seed)
        run.emit("notice", message=f"Training with rank {coming}")


def state(model: nn.Module) -> Mapping[str, Any]:
    """The rank of now."""
    return {"rank": rank_of(model)}


def load_state(model: nn.Module, config: LoraConfig, state: Mapping[str, Any]) -> None:  # noqa: ARG001  # as all ways
    """Bring the adapters to the rank that they had."""
    resize(model, int(state["rank"]))


def put_back(model: nn.Module, folder: Path) -> bool:
    """Bring the adapters to the rank of what is put back."""
    resize(model, int(read_adapter_config(folder)["r"]))
    return False


def written(model: nn.Module, folder: Path) -> None:
    """What is saved is what others load."""


def rank_of(model: Any) -> int:
    """The rank that the adapters have now."""
    return int(model.peft_config[NAME].r)


def resize(model: Any, rank: int, state: MutableMapping[Any, Any] | None = None, seed: int | None = None) -> None:
    """Bring every adapter to a rank: rows are added to A and columns to B at the end, or taken away there.

    What is added makes no difference, because the columns of B are zero, as where PEFT starts. The rows of A are drawn
    by a generator of their own, so that a run that is resumed before it draws the same.

    Args:
        model: With LoRA adapters; the parameters stay the same objects.
        rank: The new one.
        state: Of the optimizer: moments grow with their parameters, by zeros.
        seed: What the new rows are drawn with; None: zeros, for weights that are put in afterwards.
    """
    config = model.peft_config[NAME]
    before, alpha = config.r, config.lora_alpha / config.r * rank
    if rank == before:
        return
    generator = None if seed is None else torch.Generator().manual_seed(seed ^ _DRAWN ^ (rank << 16))
    for layer in growing(model):
        down, up = layer.lora_A[NAME], layer.lora_B[NAME]
        _bring(down.weight, 0, rank, state)
        _bring(up.weight, 1, rank, state)
        down.out_features = up.in_features = rank
        if generator is not None and rank > before:
            down.weight.data[before:] = _drawn(rank, layer.in_features, config.init_lora_weights, generator)[before:]
        layer.r[NAME], layer.lora_alpha[NAME] = rank, alpha
        layer.scaling[NAME] = alpha / rank
    config.r, config.lora_alpha = rank, alpha


def growing(model: nn.Module) -> Iterator[Any]:
    """The layers whose adapter has the rank of the method; one that only has a magnitude keeps its own."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and NAME in module.lora_A and module.lora_A[NAME].weight.requires_grad:
            yield module


def _bring(parameter: nn.Parameter, dim: int, rank: int, state: MutableMapping[Any, Any] | None) -> None:
    before = parameter.shape
    parameter.grad = None
    parameter.data = _cut_or_padded(parameter.data, dim, rank)
    kept = state.get(parameter, {}) if state is not None else {}
    for name, value in kept.items():
        if isinstance(value, torch.Tensor) and value.shape == before:
            kept[name] = _cut_or_padded(value, dim, rank)


def _cut_or_padded(tensor: torch.Tensor, dim: int, rank: int) -> torch.Tensor:
    shape = list(tensor.shape)
    shape[dim] = rank
    made, common = tensor.new_zeros(shape), min(rank, tensor.shape[dim])
    made.narrow(dim, 0, common).copy_(tensor.narrow(dim, 0, common))
    return made


def _drawn(rank: int, features: int, start: Any, generator: torch.Generator) -> torch.Tensor:
    """Rows of A as PEFT draws them at the start, (rank, features)."""
    rows = torch.empty(rank, features)
    if start == "gaussian":
        return rows.normal_(std=1 / rank, generator=generator)
    bound = 1 / math.sqrt(features)  # kaiming_uniform_ with a = sqrt(5)
    return rows.uniform_(-bound, bound, generator=generator)
