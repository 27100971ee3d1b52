"""Rows → orders, batches and tensors."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

IGNORED = -100
"""Label of a token that is not learned."""

_GROUPED_BATCHES = 50


class TokenRow(Protocol):
    """A tokenized row: as many labels as tokens; label j belongs to token j."""

    @property
    def input_ids(self) -> Sequence[int]: ...

    @property
    def labels(self) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right to one length.

    Attributes:
        input_ids: (rows, length).
        attention_mask: (rows, length); 1 for tokens, 0 for padding, by length and not by id.
        targets: (rows, length - 1): the label of the next token.
        kept: Positions at which some row has a target: the only ones whose logits are needed; never empty.
        tokens: Real tokens.
        labels: Targets that count.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    targets: torch.Tensor
    kept: torch.Tensor
    tokens: int
    labels: int

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        tensors = (self.input_ids, self.attention_mask, self.targets, self.kept)
        ids, mask, targets, kept = (tensor.to(device) for tensor in tensors)
        return Batch(ids, mask, targets, kept, self.tokens, self.labels)


def collate(rows: Sequence[TokenRow], pad_token_id: int, multiple: int = 1) -> Batch:
    """Pad rows on the right to the longest of them, rounded up to `multiple`."""
    width = -(-max(len(row.input_ids) for row in rows) // multiple) * multiple
    width = max(width, 2)
    ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        ids[index, :length] = torch.tensor(row.input_ids)
        mask[index, :length] = 1
        labels[index, :length] = torch.tensor(row.labels)
    targets = labels[:, 1:]
    learned = targets != IGNORED
    kept = learned.any(dim=0).nonzero().squeeze(1)
    if not len(kept):  # nothing to learn here; other processes may still wait for this one's gradients
        kept = torch.zeros(1, dtype=torch.long)
    return Batch(ids, mask, targets, kept, int(mask.sum()), int(learned.sum()))


@dataclass(frozen=True, slots=True)
class _Masked:
    input_ids: Sequence[int]
    labels: Sequence[int]


def masked(row: TokenRow) -> TokenRow:
    """The row with nothing to learn."""
    return _Masked(row.input_ids, [IGNORED] * len(row.input_ids))


def epoch_order(lengths: Sequence[int], seed: int, epoch: int, batch: int, *, by_length: bool) -> list[int]:
    """Indices of all rows in the order of an epoch: shuffled by seed and epoch.

    With `by_length`, rows of similar length stand together in batches of `batch`, the batches in random order with
    the longest first, so that memory runs out at once or never.
    """
    generator = random.Random(f"{seed}/{epoch}")  # noqa: S311  # an order, not a secret
    order = list(range(len(lengths)))
    generator.shuffle(order)
    if not by_length:
        return order
    pool = _GROUPED_BATCHES * batch
    pools = [sorted(order[i : i + pool], key=lambda row: -lengths[row]) for i in range(0, len(order), pool)]
    batches = [rows[i : i + batch] for rows in pools for i in range(0, len(rows), batch)]
    whole, rest = [b for b in batches if len(b) == batch], [b for b in batches if len(b) < batch]
    generator.shuffle(whole)
    longest = max(range(len(whole)), key=lambda i: lengths[whole[i][0]], default=0)
    whole[:1], whole[longest : longest + 1] = whole[longest : longest + 1], whole[:1]
    return [row for rows in [*whole, *rest] for row in rows]


def micro_batches(order: Sequence[int], size: int, rank: int, world: int) -> list[list[int]]:
    """This process' share of each micro-step: `size` rows of every `size * world`; maybe none of the last."""
    return [list(order[i + rank * size : i + (rank + 1) * size]) for i in range(0, len(order), size * world)]


def steps_of(micro: Sequence[list[int]], accumulation: int) -> Iterator[list[list[int]]]:
    """Group micro-steps into optimizer steps; the last of an epoch takes what is left."""
    for start in range(0, len(micro), accumulation):
        yield list(micro[start : start + accumulation])
