"""The loss of a causal language model, as a sum over tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from llamafarm_tuners.pytorch._batches import IGNORED, Batch
from llamafarm_tuners.pytorch.fast._head import exact_sum, head_loss, plain_head, skipped


def token_losses(
    model: nn.Module, batch: Batch, *, selective: bool, head: nn.Module | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the model on a batch.

    Args:
        model: A causal language model.
        batch: On the model's device.
        selective: Ask for the logits of the kept positions alone (see `llamafarm.models.inner.can_select_logits`).
        head: The model's head, if its product and the loss are to be computed in chunks.

    Returns:
        The sum of the negative log-likelihoods of all targets (a scalar, see `precise`), and the number of targets
        whose token is the model's first choice (-1 if a chunked loss had no need to know).
    """
    linear = plain_head(head)
    if head is None or linear is None:
        chosen, wanted = _at_targets(model, batch, selective=selective)
        return exact_sum(chosen, wanted), (chosen.detach().argmax(-1) == wanted).sum()
    with skipped(head):
        chosen, wanted = _at_targets(model, batch, selective=selective)
    return head_loss(chosen, linear, wanted)


def _at_targets(model: nn.Module, batch: Batch, *, selective: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's logits where there is a target, and the targets."""
    from_the_end = batch.kept - batch.targets.shape[1]  # whatever a method puts before the tokens
    arguments: dict[str, Any] = {"logits_to_keep": from_the_end} if selective else {}
    output = model(**batch.inputs, use_cache=False, **arguments)
    logits = output.logits if selective else output.logits[:, from_the_end]
    targets = batch.targets[:, batch.kept]
    learned = targets != IGNORED
    if bool(learned.all()):  # as in one row of documents: there is nothing to choose
        return logits.flatten(0, 1), targets.flatten()
    return logits[learned], targets[learned]
