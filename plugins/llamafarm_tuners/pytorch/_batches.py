"""Rows → orders, batches and tensors."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from llamafarm.data.packing import Pack

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
        attention_mask: (rows, length); 1 for tokens, 0 for padding, by length and not by id. None for packs: what
            belongs together is then told by the positions alone, and padding is a document of its own.
        positions: (rows, length), for packs only: each token's place in its document.
        targets: (rows, length - 1): the label of the next token.
        kept: Positions at which some row has a target: the only ones whose logits are needed; never empty.
        tokens: Real tokens.
        labels: Targets that count.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    targets: torch.Tensor
    kept: torch.Tensor
    tokens: int
    labels: int
    positions: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        tensors = (self.input_ids, self.attention_mask, self.targets, self.kept, self.positions)
        ids, mask, targets, kept, positions = (None if t is None else t.to(device) for t in tensors)
        assert ids is not None
        assert targets is not None
        assert kept is not None
        return Batch(ids, mask, targets, kept, self.tokens, self.labels, positions)

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """What the model is called with."""
        if self.positions is not None:
            return {"input_ids": self.input_ids, "position_ids": self.positions}
        assert self.attention_mask is not None
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


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
    positions = None
    if any(isinstance(row, Pack) for row in rows):
        positions = _positions(rows, width)
        targets = targets.masked_fill(positions[:, 1:] == 0, IGNORED)
    learned = targets != IGNORED
    kept = learned.any(dim=0).nonzero().squeeze(1)
    if not len(kept):  # nothing to learn here; other processes may still wait for this one's gradients
        kept = torch.zeros(1, dtype=torch.long)
    tokens = int(mask.sum())
    return Batch(ids, mask if positions is None else None, targets, kept, tokens, int(learned.sum()), positions)


def _positions(rows: Sequence[TokenRow], width: int) -> torch.Tensor:
    """Each token's place in its document; the padding of a row is one more document."""
    positions = torch.arange(width).repeat(len(rows), 1)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        positions[index, :length] = torch.tensor(row.positions if isinstance(row, Pack) else range(length))
        positions[index, length:] -= length
    return positions


def in_one_row(packs: Sequence[Pack]) -> Pack:
    """Packs as one row, for attention kernels that tell documents apart by positions in a batch of one only."""
    return Pack(
        [token for item in packs for token in item.input_ids],
        [label for item in packs for label in item.labels],
        [position for item in packs for position in item.positions],
    )


@dataclass(frozen=True, slots=True)
class _Masked:
    input_ids: Sequence[int]
    labels: Sequence[int]


def masked(row: TokenRow) -> TokenRow:
    """The row with nothing to learn."""
    ignored = [IGNORED] * len(row.input_ids)
    return replace(row, labels=ignored) if isinstance(row, Pack) else _Masked(row.input_ids, ignored)


def epoch_order(
    lengths: Sequence[int],
    seed: int,
    epoch: int,
    batch: int,
    *,
    by_length: bool = False,
    difficulty: Sequence[float] | None = None,
) -> list[int]:
    """Indices of all rows in the order of an epoch: shuffled by seed and epoch.

    With `difficulty` (a number for each row), the easy rows come first, and only equally hard ones are shuffled.

    With `by_length`, rows of similar length stand together in batches of `batch`, the batches in random order with
    the longest first, so that memory runs out at once or never.
    """
    generator = random.Random(f"{seed}/{epoch}")  # noqa: S311  # an order, not a secret
    order = list(range(len(lengths)))
    generator.shuffle(order)
    if difficulty is not None:
        return sorted(order, key=difficulty.__getitem__)
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
