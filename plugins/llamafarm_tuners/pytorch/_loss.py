"""The loss of a causal language model, as a sum over tokens."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from llamafarm_tuners.pytorch._batches import IGNORED, Batch


def token_losses(model: nn.Module, batch: Batch, *, selective: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the model on a batch.

    Args:
        model: A causal language model.
        batch: On the model's device.
        selective: Ask for the logits of the kept positions alone (see `can_select_logits`).

    Returns:
        The sum of the negative log-likelihoods of all targets (float32, a scalar), and the number of targets whose
        token is the model's first choice.
    """
    arguments: dict[str, Any] = {"logits_to_keep": batch.kept} if selective else {}
    output = model(**batch.inputs, use_cache=False, **arguments)
    logits = output.logits if selective else output.logits[:, batch.kept]
    targets = batch.targets[:, batch.kept]
    learned = targets != IGNORED
    chosen = logits[learned].float()
    wanted = targets[learned]
    return functional.cross_entropy(chosen, wanted, reduction="sum"), (chosen.detach().argmax(-1) == wanted).sum()


def can_select_logits(model: nn.Module) -> bool:
    """Whether the model computes logits for chosen positions only."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters
