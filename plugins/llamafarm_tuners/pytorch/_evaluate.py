"""Measures on held-out rows."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from llamafarm.data.stored import lengths_of
from llamafarm_tuners.pytorch._batches import TokenRow
from llamafarm_tuners.pytorch._loss import token_losses
from llamafarm_tuners.pytorch._memory import free, is_out_of_memory
from llamafarm_tuners.pytorch.fast._head import precise
from llamafarm_tuners.pytorch.fast._install import Paths
from llamafarm_tuners.pytorch.progress import PROGRESS

_MESSAGE = 6_000_000
"""Numbers of gradients that processes add up at a time."""


def evaluate(
    model: nn.Module,
    rows: Sequence[TokenRow],
    accelerator: Accelerator,
    *,
    paths: Paths,
    batch_size: int,
    pad_token_id: int,
    more: bool,
    fewer: Callable[[int], int],
) -> dict[str, float]:
    """Mean loss per target token over all rows (each token weighs the same), and with `more` accuracy and perplexity.

    Every process takes its share of the rows; all return the same figures. Rows that do not fit into the memory
    together are taken again in smaller parts, as many at a time as `fewer` says of their number (0: not at all).
    """
    order = sorted(range(len(rows)), key=lengths_of(rows).__getitem__)
    mine = order[accelerator.process_index :: accelerator.num_processes]
    totals = torch.zeros(3, dtype=torch.float64)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        while mine:
            PROGRESS.sign()
            chosen = [rows[row] for row in mine[:batch_size]]
            try:
                batch = paths.batch(chosen, pad_token_id).to(accelerator.device)
                with autocast(accelerator):
                    loss, right = token_losses(model, batch, selective=paths.selective, head=paths.head)
                found = torch.tensor([loss.item(), right.item(), batch.labels], dtype=torch.float64)
            except (RuntimeError, MemoryError) as error:
                batch_size = fewer(len(chosen)) if is_out_of_memory(error) else 0
                if not batch_size:
                    raise
                traceback.clear_frames(error.__traceback__)
            else:
                totals += found
                mine = mine[batch_size:]
                continue
            free(accelerator.device)
    model.train(was_training)
    loss, right, labels = sum_over_processes(totals, accelerator).tolist()
    metrics = {"eval_loss": loss / labels}
    if more:
        metrics["eval_token_accuracy"] = right / labels
        metrics["eval_perplexity"] = math.exp(min(loss / labels, 700.0))
    return metrics


def most_of_processes(number: int, accelerator: Accelerator) -> int:
    """The largest of the processes' numbers."""
    found = torch.zeros(accelerator.num_processes, dtype=torch.float64)
    found[accelerator.process_index] = float(number)
    return int(max(sum_over_processes(found, accelerator).tolist()))


def mean_over_processes(model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the mean of all gradients, many in one message."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:  # no token reached it here
            parameter.grad = torch.zeros_like(parameter)
    waiting: list[torch.Tensor] = []
    for parameter in trained:
        assert parameter.grad is not None
        if waiting and (parameter.dtype != waiting[0].dtype or sum(map(torch.numel, waiting)) > _MESSAGE):
            _mean_of(waiting, accelerator)
            waiting = []
        waiting.append(parameter.grad)
    if waiting:
        _mean_of(waiting, accelerator)


def _mean_of(gradients: list[torch.Tensor], accelerator: Accelerator) -> None:
    together = torch.cat([gradient.flatten() for gradient in gradients])
    with PROGRESS.elsewhere():
        flat = accelerator.reduce(together, "mean")
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def sum_over_processes(values: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Add up a small float64 tensor over all processes."""
    if accelerator.num_processes == 1:
        return values
    with PROGRESS.elsewhere():
        there = values.to(accelerator.device, precise(accelerator.device))
        total: torch.Tensor = accelerator.reduce(there, "sum").cpu()
    return total


def wait_for_all(accelerator: Accelerator) -> None:
    """Wait until all processes are here."""
    with PROGRESS.elsewhere():
        accelerator.wait_for_everyone()


def autocast(accelerator: Accelerator) -> AbstractContextManager[Any]:
    """The run's mixed precision."""
    context: AbstractContextManager[Any] = accelerator.autocast()
    return context
