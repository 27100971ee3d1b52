"""Whether a model keeps the documents of a pack apart: measured on the model itself, because no flag says so."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from llamafarm.data.fit import TokenizedRow
from llamafarm.data.packing import Pack, join, unpack
from llamafarm.errors import ModelError
from llamafarm_tuners.pytorch._batches import TokenRow, collate

TOLERANCE = 1e-4
"""Largest difference of logits that is rounding: measured below 1e-6 where documents are apart, above 0.3 where not."""

_MOST = 48
_HINT = "set training.packing: false"


def one_row_only(model: nn.Module) -> bool:
    """Whether the model's attention kernel tells documents apart in a batch of one row only."""
    config: Any = getattr(model, "config", None)
    return "flash" in str(getattr(config, "_attn_implementation", ""))


def require_isolation(model: nn.Module, rows: Sequence[TokenRow], device: torch.device) -> None:
    """Check that a document of a pack is computed as if it were alone, whatever stands before it.

    Args:
        model: On its device.
        rows: Packs to take the documents from.
        device: The model's.

    Raises:
        ModelError: If the model takes no positions, or a document reaches into the next.
    """
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "position_ids" not in inspect.signature(inner.forward).parameters:
        message = f"packing: {_name(inner)} takes no positions, so documents cannot be told apart"
        raise ModelError.of("LF-MODEL-040", message, hint=_HINT)
    first, second = _documents(rows)
    other = TokenizedRow(first.input_ids[::-1], first.labels)
    was_training = model.training
    model.eval()
    alone = _logits(model, join([second]), device)
    precise = alone.dtype == torch.float32
    packed = [_logits(model, join([before, second]), device)[-len(alone) :] for before in (first, other)]
    model.train(was_training)
    leak = _difference(packed[0], packed[1])
    # Coarser arithmetic may round differently in a longer row; what stands before must not matter in any.
    shift = _difference(packed[0], alone) if precise else 0.0
    if not max(leak, shift) <= TOLERANCE:
        kernel = getattr(inner.config, "_attn_implementation", "its")
        message = (
            f"packing: {_name(inner)} with {kernel} attention lets the documents of a pack see one another "
            f"(logits differ by {max(leak, shift):.2g})"
        )
        raise ModelError.of("LF-MODEL-041", message, hint=f"{_HINT}, or another base_model.attn_implementation")


def _documents(rows: Sequence[TokenRow]) -> tuple[TokenizedRow, TokenizedRow]:
    """Two documents that are short enough to be quick, and long enough to reverse."""
    longest = max((row for row in rows if isinstance(row, Pack)), key=lambda row: len(row.input_ids))
    documents = sorted(unpack(longest), key=lambda row: -len(row.input_ids))
    first, second = documents[0], documents[min(1, len(documents) - 1)]
    return TokenizedRow(first.input_ids[:_MOST], []), TokenizedRow(second.input_ids[:_MOST], [])


def _logits(model: nn.Module, packed: Pack, device: torch.device) -> torch.Tensor:
    """(length, vocabulary), computed as training does it."""
    packed.labels = [-100] * len(packed.input_ids)
    with torch.no_grad():
        logits: torch.Tensor = model(**collate([packed], 0).to(device).inputs, use_cache=False).logits[0]
    return logits


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).abs().max())


def _name(model: Any) -> str:
    return str(getattr(model.config, "model_type", type(model).__name__))
