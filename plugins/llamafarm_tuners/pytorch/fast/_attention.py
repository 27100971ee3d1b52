"""Attention of documents that stand one after the other in one row: each to itself, nothing computed between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llamafarm_tuners.pytorch.fast._attend import attend, attend_backward
from llamafarm_tuners.pytorch.fast._capped import capped, capped_documents
from llamafarm_tuners.pytorch.fast._documents import Documents
from llamafarm_tuners.pytorch.fast._kernels import Shape, attention_kernels
from llamafarm_tuners.pytorch.fast._linear import batched_products_pay

KERNEL = "llamafarm_documents"
"""The name under which transformers finds this; without documents in the call it is `sdpa`."""

VARIABLE = "llamafarm_variable"
"""The same as one call for all documents, through torch's FlashAttention: on CUDA, in 16 bits, without dropout."""

_CHANGES_SCORES = ("softcap", "position_bias", "s_aux")


def register() -> None:
    """Make the kernels known to transformers."""
    for name, kernel in ((KERNEL, document_attention), (VARIABLE, variable_length_attention)):
        AttentionInterface.register(name, kernel)
        AttentionMaskInterface.register(name, sdpa_mask)


def stand_in(kernel: str, device: torch.device) -> torch.Tensor:
    """A mask to call the model with, so that it builds none between all pairs of tokens; the kernels ignore it.

    It is where the kernel wants the bounds of the documents: `KERNEL` in main memory, `VARIABLE` on the device.
    """
    return torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device if kernel == VARIABLE else "cpu")


def document_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    softcap: float | None = None,
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
        softcap: What the scores stay below, if they are capped; then this is its own `eager`, without weights.
        **others: What the architecture says besides.

    Returns:
        (1, tokens, heads, size), and no weights.

    Raises:
        NotImplementedError: If the architecture changes the scores in a way that this kernel does not know.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if softcap is not None and cu_seq_lens_q is None:
        return capped((query, key, value), attention_mask, scale, softcap, dropout).transpose(1, 2), None
    if cu_seq_lens_q is None:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return result
    _require_plain(module, others)
    dtype, lengths = query.dtype, cu_seq_lens_q.diff().tolist()
    if softcap is not None:
        if dropout:
            raise NotImplementedError("dropout in capped attention")
        return capped_documents((query[0], key[0], value[0]), lengths, scale, softcap).transpose(0, 1)[None], None
    parts = query[0], key[0], value[0]
    found = None if dropout else attention_kernels(parts, lengths, key.shape[1])
    if found is not None:
        return Documents.apply(*parts, Shape(lengths, scale), found)[None], None
    if query.device.type == "cpu" and dtype != torch.float32:  # the kernel's way back is slow in half precision
        query, key, value = query.float(), key.float(), value.float()
    if query.device.type == "cpu" and not dropout and batched_products_pay():
        return _Documents.apply(query[0], key[0], value[0], lengths, scale)[None].to(dtype), None
    grouped = query.shape[1] != key.shape[1]
    results = [
        functional.scaled_dot_product_attention(q, k, v, None, dropout, True, scale=scaling, enable_gqa=grouped)
        for q, k, v in zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    ]
    return torch.cat(results, dim=2).transpose(1, 2).to(dtype), None


def variable_length_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """As `document_attention`; `cu_seq_lens_q` is on the device, `max_length_q` the length of the longest document.

    Raises:
        NotImplementedError: If the architecture changes the scores, or drops some.
    """
    if cu_seq_lens_q is None or not torch.backends.cuda.flash_sdp_enabled():  # somebody does without that kernel
        named = others | {"dropout": dropout, "scaling": scaling, "cu_seq_lens_q": cu_seq_lens_q}
        return document_attention(module, query, key, value, attention_mask, **named)
    _require_plain(module, others)
    if dropout:
        raise NotImplementedError("dropout in attention")
    result = varlen_attn(
        *(tensor[0].transpose(0, 1) for tensor in (query, key, value)),
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(-1, 0),  # causal
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return result[None], None


def _require_plain(module: Any, others: Mapping[str, Any]) -> None:
    unknown = [name for name in _CHANGES_SCORES if others.get(name) is not None]
    if unknown or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"attention with {', '.join(unknown) or 'sight of later tokens'}")


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
