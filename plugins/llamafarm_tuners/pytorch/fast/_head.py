"""The head and the loss, at learned positions only, a few hundred at a time.

For a token with hidden state h, target t and p = softmax(W h + b), the loss is -log p[t], and its gradient after the
logits is p - onehot(t). So the gradients of h, W and b are products with what the forward pass has at hand; they are
formed there, and no logit outlives its chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from llamafarm_tuners.pytorch.fast._kernels import Kernels, kernels
from llamafarm_tuners.pytorch.fast._linear import product

_CHUNK_BYTES = {"cpu": 32 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 256 * 2**20
_EVEN = 64
"""Chunks are a multiple of it: products with other numbers of rows are slower."""

_TINY = 1e-30
"""Below it a probability in float32 may have lost digits, and its logarithm is taken another way."""


def plain_head(head: nn.Module | None) -> nn.Linear | None:
    """The linear layer that a head amounts to, maybe wrapped to be trained whole; None if it is more than that."""
    inner: Any = head
    if hasattr(inner, "modules_to_save") and hasattr(inner, "original_module"):  # PEFT's wrapper
        active = list(getattr(inner, "active_adapters", ()))
        if len(active) != 1 or getattr(inner, "disable_adapters", False):
            return None
        inner = dict(inner.modules_to_save).get(active[0], inner.original_module)
    hooked = any(getattr(module, "_forward_hooks", None) for module in (head, inner))
    return inner if type(inner) is nn.Linear and not hooked else None


@contextmanager
def skipped(head: nn.Module) -> Iterator[list[torch.Tensor]]:
    """While it lasts the head returns what it is given, so that a model returns its hidden states as logits.

    Yields:
        What the head was given, call by call: if a model's logits are this very tensor, nothing follows its head.
    """
    given: list[torch.Tensor] = []

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        given.append(hidden)
        return hidden

    shadowed = head.__dict__.get("forward")
    head.forward = forward
    try:
        yield given
    finally:
        del head.forward
        if shadowed is not None:
            head.forward = shadowed


def precise(device: torch.device) -> torch.dtype:
    """What many tokens or rows are added up in: where it is float64, how they were divided does not show."""
    return torch.float32 if device.type == "mps" else torch.float64


def head_loss(hidden: torch.Tensor, head: nn.Linear, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the next token.

    Args:
        hidden: (tokens, size).
        head: Its weight is (vocabulary, size).
        targets: (tokens,).

    Returns:
        The sum of the negative log-likelihoods (a scalar, see `precise`), and, where no gradient is asked for, the
        number of targets that are the model's first choice (else -1: nobody counts while training).
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    else:
        dtype = head.weight.dtype
    parts = (hidden, head.weight, head.bias)
    # within the function gradients are always off, and what needs one does not depend on whether it is asked for
    learns = [torch.is_grad_enabled() and part is not None and part.requires_grad for part in parts]
    loss, right = _HeadLoss.apply(*parts, targets, dtype, learns)
    return loss, right


class _HeadLoss(torch.autograd.Function):  # type: ignore[misc]  # torch does not type it
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        dtype: torch.dtype,
        learns: list[bool],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            loss, right, ctx.gradients = _loss_and_gradients((hidden, weight, bias), targets, dtype, learns)
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scaled = [None if gradient is None else gradient.mul_(scale) for gradient in ctx.gradients]
        ctx.gradients = None
        return (*scaled, None, None, None)


def _loss_and_gradients(
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
    targets: torch.Tensor,
    dtype: torch.dtype,
    learns: list[bool],
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor | None]]:
    """The loss of hidden states, weight and bias, how many targets are first choice, and the gradients asked for."""
    hidden, weight, bias = parts
    gradients = [  # sums over chunks, so not in half precision
        torch.zeros(part.shape, device=part.device) if part is not None and needed else None
        for part, needed in zip(parts, learns, strict=True)
    ]
    states, matrix = hidden.to(dtype), weight.to(dtype)
    shift = None if bias is None else bias.to(dtype)
    loss = torch.zeros((), dtype=precise(hidden.device), device=hidden.device)
    right = torch.full((), -1 if any(learns) else 0, dtype=torch.long, device=hidden.device)
    compiled = kernels(states, matrix) if any(learns) else None
    for start, size in _chunks(len(targets), weight.shape[0], dtype, hidden.device, compiled):
        chunk, wanted = states[start : start + size], targets[start : start + size, None]
        logits = product(chunk, matrix, shift)
        if compiled is not None:  # the logits become the error
            loss += compiled.head(logits, wanted).sum()
            error = logits
        else:
            logits = logits.float()
            if not any(learns):
                right += (logits.argmax(1, keepdim=True) == wanted).sum()
            total, probabilities = _loss_in_place(logits, wanted)
            # a probability of (nearly) 0 says too little of its logarithm; asking would make a GPU wait
            loss += _exact(product(chunk, matrix, shift), wanted) if total is None else total
            if not any(learns):
                continue
            error = probabilities.scatter_add_(1, wanted, probabilities.new_full(wanted.shape, -1.0)).to(dtype)
        if gradients[0] is not None:
            gradients[0][start : start + size] = product(error, matrix.t())
        if gradients[1] is not None:
            gradients[1] += product(error.t(), chunk.t())
        if gradients[2] is not None:
            gradients[2] += error.sum(0)
    pairs = zip(parts, gradients, strict=True)
    return loss, right, [None if part is None or found is None else found.to(part.dtype) for part, found in pairs]


def _chunks(
    tokens: int, vocabulary: int, dtype: torch.dtype, device: torch.device, compiled: Kernels | None
) -> Iterator[tuple[int, int]]:
    """Start and size of each chunk: what it takes in float32, and in `dtype` before and after, stays in the budget.

    Where the logits stay in their place, chunks have the rows of float32: with fewer, products are slower, and more
    than half of the budget would be new memory from the kernel each time.
    """
    in_place = dtype == torch.float32 or compiled is not None
    each = vocabulary * (4 if in_place else 4 + 2 * dtype.itemsize)
    size = max(16, _CHUNK_BYTES.get(device.type, _CHUNK_BYTES_ELSEWHERE) // each)
    size -= size % _EVEN if size > _EVEN else 0
    return ((start, size) for start in range(0, tokens, size))


def _loss_in_place(logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The sum of -log p (see `precise`), None if digits were lost; and p, which takes the place of the logits."""
    if logits.device.type != "cpu":
        total = _exact(logits, wanted)
        return total, torch.softmax(logits, 1, out=logits)
    probabilities = torch.softmax(logits, 1, out=logits)
    chosen = probabilities.gather(1, wanted)
    return None if bool((chosen < _TINY).any()) else -chosen.log().sum(dtype=torch.float64), probabilities


def exact_sum(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The sum of -log p of the wanted columns of (rows, columns), each in float32, all of them as `precise` says."""
    losses = functional.cross_entropy(logits.float(), wanted, reduction="none")
    return losses.sum(dtype=precise(losses.device))


def _exact(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return exact_sum(logits, wanted.squeeze(1))
