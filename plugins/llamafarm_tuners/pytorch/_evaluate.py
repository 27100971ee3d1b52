"""Measures on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from llamafarm_tuners.pytorch._batches import TokenRow
from llamafarm_tuners.pytorch._loss import token_losses
from llamafarm_tuners.pytorch.fast._install import Paths


def evaluate(
    model: nn.Module,
    rows: Sequence[TokenRow],
    accelerator: Accelerator,
    *,
    paths: Paths,
    batch_size: int,
    pad_token_id: int,
    more: bool,
) -> dict[str, float]:
    """Mean loss per target token over all rows (each token weighs the same), and with `more` accuracy and perplexity.

    Every process takes its share of the rows; all return the same figures.
    """
    order = sorted(range(len(rows)), key=lambda row: len(rows[row].input_ids))
    mine = order[accelerator.process_index :: accelerator.num_processes]
    totals = torch.zeros(3, dtype=torch.float64)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(mine), batch_size):
            batch = paths.batch([rows[row] for row in mine[start : start + batch_size]], pad_token_id)
            batch = batch.to(accelerator.device)
            with autocast(accelerator):
                loss, right = token_losses(model, batch, selective=paths.selective, head=paths.head)
            totals += torch.tensor([loss.item(), right.item(), batch.labels], dtype=torch.float64)
    model.train(was_training)
    loss, right, labels = sum_over_processes(totals, accelerator).tolist()
    metrics = {"eval_loss": loss / labels}
    if more:
        metrics["eval_token_accuracy"] = right / labels
        metrics["eval_perplexity"] = math.exp(min(loss / labels, 700.0))
    return metrics


def sum_over_processes(values: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Add up a small float64 tensor over all processes."""
    if accelerator.num_processes == 1:
        return values
    precise = torch.float32 if accelerator.device.type == "mps" else torch.float64
    total: torch.Tensor = accelerator.reduce(values.to(accelerator.device, precise), "sum").cpu()
    return total


def autocast(accelerator: Accelerator) -> AbstractContextManager[Any]:
    """The run's mixed precision."""
    context: AbstractContextManager[Any] = accelerator.autocast()
    return context
