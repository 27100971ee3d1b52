"""How likely a model finds the expected text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from llamafarm.data.fit import IGNORED, TokenizedRow
from llamafarm.data.stored import lengths_of
from llamafarm.models.inner import can_select_logits
from llamafarm.models.positions import require_positions, virtual_tokens


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Sums over the targets of one row.

    Attributes:
        loss: Negative log-likelihood in nats.
        right: Targets that are the model's first choice.
        targets: How many there are: labelled positions but the first of the row, which nothing predicts.
    """

    loss: float
    right: int
    targets: int


def likelihoods(model: Any, rows: Sequence[TokenizedRow], *, batch_size: int) -> list[Likelihood]:
    """Measure each row: position j + 1 is predicted from position j, whose logits are taken in float32.

    Args:
        model: A causal language model in evaluation mode.
        rows: Token ids and labels.
        batch_size: Rows at a time; similar lengths stand together.

    Raises:
        ModelError: If a row has more tokens than the model has positions.
    """
    longest = max(lengths_of(rows), default=0)
    before = virtual_tokens(model)
    require_positions(model, longest + before, "the longest row", "set training.max_seq_length: {}")
    order = sorted(range(len(rows)), key=lengths_of(rows).__getitem__)
    found: list[Likelihood] = [Likelihood(0.0, 0, 0)] * len(rows)
    selective = can_select_logits(model)
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            for index, one in zip(chosen, _batch(model, [rows[i] for i in chosen], selective=selective), strict=True):
                found[index] = one
    return found


def _batch(model: Any, rows: Sequence[TokenizedRow], *, selective: bool) -> list[Likelihood]:
    width = max(2, *(len(row.input_ids) for row in rows))
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    targets = torch.full_like(ids, IGNORED)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        ids[index, :length] = torch.tensor(row.input_ids)
        mask[index, :length] = 1
        targets[index, :length] = torch.tensor(row.labels)
    targets = targets[:, 1:]  # the label of the next token; padding stands behind and is never one
    kept = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
    if not len(kept):
        return [Likelihood(0.0, 0, 0) for _ in rows]
    ids, mask, targets, kept = (tensor.to(model.device) for tensor in (ids, mask, targets, kept))
    from_the_end = kept - width  # whatever a method puts before the tokens
    keep = {"logits_to_keep": from_the_end} if selective else {}
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **keep).logits
    logits = (logits if selective else logits[:, from_the_end]).float()
    wanted = targets[:, kept]
    losses = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none")
    right = (logits.argmax(-1) == wanted).sum(1).tolist()
    sums = losses.view_as(wanted).double().sum(1).tolist()
    counts = (wanted != IGNORED).sum(1).tolist()
    return [Likelihood(*figures) for figures in zip(sums, right, counts, strict=True)]
