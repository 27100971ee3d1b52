"""Whether a model computes the same in another way: measured on the model itself, because no flag says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from llamafarm.data.fit import TokenizedRow
from llamafarm_tuners.pytorch._batches import IGNORED, Batch, TokenRow, documents, in_one_row, padded

EXACT = 1e-4
"""Largest difference in float32 that is rounding, as a share of the largest logit (or of 1): measured below 1e-6 where
two ways are the same, above 0.1 where documents see one another."""

COARSE = 0.1
"""The same where weights or products are coarser than float32."""

_MOST = 48


@dataclass(frozen=True, slots=True)
class Probe:
    """A short document, once alone and padded, and twice behind others.

    Attributes:
        reference: (length, vocabulary): logits of the document alone, as the model itself computes them.
        rows: The document, and two others to put before it.
    """

    reference: torch.Tensor
    rows: tuple[TokenRow, TokenRow, TokenRow]

    @classmethod
    def of(cls, model: nn.Module, rows: Sequence[TokenRow], device: torch.device) -> Probe:
        """Take the documents from the first of the rows, and measure the reference."""
        some = sorted(documents(rows[:64]), key=lambda row: -len(row.input_ids))
        document, other = (_cut(row) for row in (some[min(1, len(some) - 1)], some[0]))
        backwards = TokenizedRow(list(other.input_ids)[::-1], list(other.labels))
        return cls(_logits(model, padded([document], 0), device), (document, other, backwards))

    def fault(self, model: nn.Module, device: torch.device, mask: torch.Tensor | None) -> str | None:
        """What is wrong with the document's logits when it stands behind others in one row; None if nothing is."""
        document, *others = self.rows
        length = len(document.input_ids)
        behind = [_logits(model, in_one_row([other, document], mask), device)[-length:] for other in others]
        leak = _difference(*behind)
        # what stands before must not matter in any arithmetic; a coarse one may round differently in a longer row
        if not leak <= EXACT * self._scale:
            return f"documents see one another (logits differ by {leak:.2g})"
        return self._unlike(model, behind[0], "a document behind others is computed differently")

    def change(self, model: nn.Module, device: torch.device) -> str | None:
        """What is wrong with the document's logits when it is alone and padded; None if they are as they were."""
        alone = _logits(model, padded([self.rows[0]], 0), device)
        return self._unlike(model, alone, "a document is computed differently")

    @property
    def _scale(self) -> float:
        return max(1.0, float(self.reference.abs().max()))

    def _unlike(self, model: nn.Module, logits: torch.Tensor, what: str) -> str | None:
        shift = _difference(logits, self.reference)
        exact = computes_exactly(model) and self.reference.dtype == torch.float32
        fine = shift <= (EXACT if exact else COARSE) * self._scale
        return None if fine else f"{what} (logits differ by {shift:.2g})"


@contextmanager
def as_in_evaluation(model: nn.Module) -> Iterator[None]:
    """No dropout, no gradients, while it lasts."""
    before = [(module, module.training) for module in model.modules()]
    without_dropout(model)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in before:
            module.training = was_training


def without_dropout(model: nn.Module) -> None:
    """As in evaluation, except for layers in 8 bits: in evaluation alone they round their inputs to 8 bits too."""
    model.eval()
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt":
            module.training = True


def computes_exactly(model: nn.Module) -> bool:
    """Whether all weights and products are float32.

    Products of packed weights have a format of their own; and on the way back bitsandbytes rounds such weights to the
    format that they were packed from.
    """
    weights = all(p.dtype == torch.float32 for p in model.parameters() if p.is_floating_point())
    products = {getattr(module, "compute_dtype", None) for module in model.modules()}
    origins = {getattr(getattr(p, "quant_state", None), "dtype", None) for p in model.parameters()}
    return weights and products | origins <= {None, torch.float32}


def _cut(row: TokenRow) -> TokenizedRow:
    ids = list(row.input_ids[:_MOST])
    return TokenizedRow(ids, [IGNORED] * len(ids))


def _logits(model: nn.Module, batch: Batch, device: torch.device) -> torch.Tensor:
    """(length, vocabulary)."""
    logits: torch.Tensor = model(**batch.to(device).inputs, use_cache=False).logits[0]
    return logits[-batch.input_ids.shape[1] :]


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).abs().max())
