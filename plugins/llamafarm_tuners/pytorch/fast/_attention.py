"""Attention of documents that stand one after the other in one row: each to itself, nothing computed between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llamafarm_tuners.pytorch.fast._attend import attend, attend_backward
from llamafarm_tuners.pytorch.fast._linear import batched_products_pay

KERNEL = "llamafarm_documents"
"""The name under which transformers finds this; without documents in the call it is `sdpa`."""

_CHANGES_SCORES = ("softcap", "position_bias", "s_aux")


def register() -> None:
    """Make the kernel known to transformers."""
    AttentionInterface.register(KERNEL, document_attention)
    AttentionMaskInterface.register(KERNEL, sdpa_mask)


def stand_in() -> torch.Tensor:
    """A mask to call the model with, so that it builds none between all pairs of tokens; the kernel ignores it."""
    return torch.ones((1, 1, 1, 1), dtype=torch.bool)


def document_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document.

    Args:
        module: The attention layer.
        query: (1, heads, tokens, size).
        key: (1, key heads, tokens, size).
        value: As `key`.
        attention_mask: Ignored when there are documents.
        dropout: Share of the weights that are dropped.
        scaling: Of the scores; by default the root of the size.
        cu_seq_lens_q: Where documents begin, and the end; without it this is transformers' own `sdpa`.
        **others: What the architecture says besides.

    Returns:
        (1, tokens, heads, size), and no weights.

    Raises:
        NotImplementedError: If the architecture changes the scores in a way that this kernel does not know.
    """
    if cu_seq_lens_q is None:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return result
    unknown = [name for name in _CHANGES_SCORES if others.get(name) is not None]
    if unknown or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"attention with {', '.join(unknown) or 'sight of later tokens'}")
    dtype, lengths = query.dtype, cu_seq_lens_q.diff().tolist()
    if query.device.type == "cpu" and dtype != torch.float32:  # the kernel's way back is slow in half precision
        query, key, value = query.float(), key.float(), value.float()
    if query.device.type == "cpu" and not dropout and batched_products_pay():
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return _Documents.apply(query[0], key[0], value[0], lengths, scale)[None].to(dtype), None
    grouped = query.shape[1] != key.shape[1]
    parts = [
        functional.scaled_dot_product_attention(q, k, v, None, dropout, True, scale=scaling, enable_gqa=grouped)
        for q, k, v in zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).to(dtype), None


class _Documents(torch.autograd.Function):  # type: ignore[misc]  # torch does not type it
    """`attend`, with its way back."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: Sequence[int], scale: float
    ) -> torch.Tensor:
        out = torch.empty((q.shape[1], len(q), v.shape[2]))
        kept = attend((q, k, v), lengths, scale, out)
        ctx.lengths, ctx.scale = lengths, scale
        ctx.save_for_backward(q, k, v, out, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, *kept = ctx.saved_tensors
        into = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        attend_backward(gradient.transpose(0, 1), (q, k, v), (out, kept), ctx.lengths, ctx.scale, into)
        return (*into, None, None)
