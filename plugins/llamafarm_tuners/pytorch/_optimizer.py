"""Optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from llamafarm.api import Method, TrainingConfig
from llamafarm_tuners.pytorch._host_optimizer import HostOptimizer
from llamafarm_tuners.pytorch.optim import effective, offloaded

_BITSANDBYTES = {
    "adamw_8bit": "AdamW8bit",
    "adamw_bnb_8bit": "AdamW8bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "paged_adamw_32bit": "PagedAdamW32bit",
}


def parameter_groups(
    model: nn.Module, training: TrainingConfig, factors: Mapping[str, float] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and weight decay: vectors (biases, norms, magnitudes) are not decayed.

    Args:
        model: Whose trainable parameters are grouped.
        training: Learning rate and weight decay.
        factors: Parameters that learn faster or slower: name → factor of the learning rate.

    Returns:
        Groups that are not empty; first those that learn at the learning rate itself.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((factors.get(name, 1.0), parameter.ndim <= 1), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda group: (group[0][0] != 1.0, group[0]))
    return [
        {
            "params": parameters,
            "weight_decay": 0.0 if vectors else training.weight_decay,
            "lr": factor * training.learning_rate,
        }
        for (factor, vectors), parameters in ordered
    ]


class Configured:
    """What an optimizer and its schedule were built with, to be put back over what a checkpoint kept of it."""

    def __init__(self, optimizer: Any, scheduler: Any) -> None:
        self._optimizer, self._scheduler = optimizer, scheduler
        self._groups = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
        self._rates = list(scheduler.base_lrs)

    def put_back(self, *, rates: bool) -> None:
        """Go on with these hyper-parameters at the step that the schedule has come to.

        Args:
            rates: With the learning rates too; else with those of the checkpoint, which a remedy may have lowered.
        """
        kept = {"lr"} if rates else {"lr", "initial_lr"}
        for group, mine in zip(self._optimizer.param_groups, self._groups, strict=True):
            group.update({key: value for key, value in mine.items() if key not in kept})
        scheduler = self._scheduler
        if rates:
            scheduler.base_lrs = list(self._rates)
        now = [
            rate * factor(scheduler.last_epoch)
            for rate, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self._optimizer.param_groups, now, strict=True):
            group["lr"] = rate
        scheduler._last_lr = now  # noqa: SLF001  # what it says the rates are


def learning_rate_factors(model: nn.Module, methods: Iterable[Method[Any]]) -> dict[str, float]:
    """What the methods of a stack say together; where two name one parameter, their factors multiply."""
    factors: dict[str, float] = {}
    for method in methods:
        for name, factor in method.learning_rates(model).items():
            factors[name] = factors.get(name, 1.0) * factor
    return factors


def build_optimizer(
    model: nn.Module, training: TrainingConfig, device: str, methods: Iterable[Method[Any]] = ()
) -> torch.optim.Optimizer:
    """The optimizer that `training.optim` names, over the trainable parameters, for a type of device."""
    groups = parameter_groups(model, training, learning_rate_factors(model, methods))
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
        _keep_whole(optimizer, model)
        return optimizer
    if offloaded(training, device):
        return HostOptimizer(groups, partial(torch.optim.AdamW, fused=True, **adam))
    # without a word torch takes its loop on a CPU, and on GPUs one kernel for many parameters
    return torch.optim.AdamW(groups, fused=True if optim == "adamw_torch_fused" else None, **adam)


def _keep_whole(optimizer: Any, model: nn.Module) -> None:
    """Keep an embedding's moments in 32 bits, as bitsandbytes advises and transformers does.

    Most of its rows have no gradient in a step and a few a large one, which blocks of 8 bits cannot tell apart.
    bitsandbytes' own register of exceptions goes by `id` and outlives the model, so it is not used.
    """
    embeddings = (module for module in model.modules() if isinstance(module, nn.Embedding))
    whole = {id(parameter) for module in embeddings for parameter in module.parameters()}
    usual = optimizer.get_config

    def get_config(group_index: int, index: int, group: dict[str, Any]) -> dict[str, Any]:
        config: dict[str, Any] = usual(group_index, index, group)
        if id(optimizer.param_groups[group_index]["params"][index]) in whole:
            config["optim_bits"] = 32
        return config

    optimizer.get_config = get_config
