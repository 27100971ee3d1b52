"""Attention of documents by the compiled kernels: read where q, k and v are, written where their gradients belong.

Kept for the way back are q, k, v as they came, and a number for each row of scores; positions, norms over heads and
weights are computed again.
"""

from __future__ import annotations

from typing import Any

import torch

from llamafarm_tuners.pytorch.fast._kernels import Kernels, Shape, Tensors

Gradients = tuple[torch.Tensor | None, ...]


class Documents(torch.autograd.Function):  # type: ignore[misc]  # torch does not type it
    """q of (heads, tokens, size), k and v of (key heads, tokens, size) → (tokens, heads, size of v)."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shape: Shape, compiled: Kernels
    ) -> torch.Tensor:
        out = torch.empty((q.shape[1], len(q), v.shape[2]), dtype=q.dtype)
        totals = compiled.attend((q, k, v), shape, out.transpose(0, 1))
        ctx.shape, ctx.compiled = shape, compiled
        ctx.save_for_backward(q, k, v, totals)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Gradients:
        q, k, v, totals = ctx.saved_tensors
        into = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        ctx.compiled.attend_back(gradient.contiguous().transpose(0, 1), (q, k, v), ctx.shape, totals, into)
        return (*into, None, None)


class Rows(torch.autograd.Function):  # type: ignore[misc]  # torch does not type it
    """q, k, v side by side in rows, (tokens, heads and twice key heads of one size) → (tokens, heads of that size)."""

    @staticmethod
    def forward(ctx: Any, qkv: torch.Tensor, keys: int, size: int, shape: Shape, compiled: Kernels) -> torch.Tensor:
        parts = _parts(qkv, keys, size)
        out = qkv.new_empty((len(qkv), parts[0].shape[0], size))
        totals = compiled.attend(parts, shape, out.transpose(0, 1))
        ctx.keys, ctx.size, ctx.shape, ctx.compiled = keys, size, shape, compiled
        ctx.save_for_backward(qkv, totals)
        return out.view(len(qkv), -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Gradients:
        qkv, totals = ctx.saved_tensors
        of_qkv, given = torch.empty_like(qkv), gradient.contiguous().view(len(qkv), -1, ctx.size).transpose(0, 1)
        parts, into = _parts(qkv, ctx.keys, ctx.size), _parts(of_qkv, ctx.keys, ctx.size)
        ctx.compiled.attend_back(given, parts, ctx.shape, totals, into)
        return of_qkv, None, None, None, None


def _parts(qkv: torch.Tensor, keys: int, size: int) -> Tensors:
    """q, k and v of (heads, tokens, size), without a copy."""
    apart = qkv.view(len(qkv), -1, size).transpose(0, 1)
    q, k, v = apart.split((len(apart) - 2 * keys, keys, keys))
    return q, k, v
