"""Attention whose scores are capped, c tanh(score / c), as Gemma 2 has it: no kernel of PyTorch knows that.

It is written out, one document at a time, so that scores exist within documents only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def capped_documents(parts: Tensors, lengths: Sequence[int], scale: float, cap: float) -> torch.Tensor:
    """Causal attention within each document.

    Args:
        parts: Queries (heads, tokens, size), keys and values (key heads, tokens, size).
        lengths: Of the documents.
        scale: Of the scores, before they are capped.
        cap: What scores stay below.

    Returns:
        (heads, tokens, size).
    """
    documents = zip(*(part.split(lengths, dim=1) for part in parts), strict=True)
    return torch.cat([capped(document, None, scale, cap) for document in documents], dim=1)


def capped(parts: Tensors, mask: torch.Tensor | None, scale: float, cap: float, dropout: float = 0.0) -> torch.Tensor:
    """Attention of queries to keys.

    Args:
        parts: Queries (…, heads, tokens, size), keys and values (…, key heads, tokens, size).
        mask: True where a query sees a key; None: no later key.
        scale: Of the scores, before they are capped.
        cap: What scores stay below.
        dropout: Share of the weights that are dropped.

    Returns:
        (…, heads, tokens, size).
    """
    queries, keys, values = parts
    share = queries.shape[-3] // keys.shape[-3]
    keys, values = (part.repeat_interleave(share, dim=-3) for part in (keys, values))
    scores = (queries @ keys.transpose(-1, -2) * (scale / cap)).tanh() * cap
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril(
            scores.shape[-1] - scores.shape[-2]
        )
    # not minus infinity: a filled-up row may see nothing at all
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = functional.dropout(scores.softmax(-1, dtype=torch.float32), dropout)
    return weights.to(values.dtype) @ values
