"""Optimizers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from llamafarm.api import TrainingConfig
from llamafarm_tuners.pytorch.optim import effective

_BITSANDBYTES = {
    "adamw_8bit": "AdamW8bit",
    "adamw_bnb_8bit": "AdamW8bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "paged_adamw_32bit": "PagedAdamW32bit",
}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: vectors (biases, norms) are not decayed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, training: TrainingConfig, device: str) -> torch.optim.Optimizer:
    """The optimizer that `training.optim` names, over the trainable parameters, for a type of device."""
    groups = [group for group in parameter_groups(model, training.weight_decay) if group["params"]]
    if training.optim == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate)
    adam = {
        "lr": training.learning_rate,
        "betas": (training.adam_beta1, training.adam_beta2),
        "eps": training.adam_epsilon,
    }
    optim = effective(training.optim, device)
    if optim in _BITSANDBYTES:
        import bitsandbytes

        optimizer: torch.optim.Optimizer = getattr(bitsandbytes.optim, _BITSANDBYTES[optim])(groups, **adam)
        return optimizer
    return torch.optim.AdamW(groups, fused=optim == "adamw_torch_fused", **adam)
