"""Rows → orders, batches and tensors."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch.nn import functional

from llamafarm.data.packing import Pack, unpack

IGNORED = -100
"""Label of a token that is not learned."""

KEPT = "llamafarm_kept"
"""The name under which a model hands the kept columns to its layers."""

_GROUPED_BATCHES = 50


class TokenRow(Protocol):
    """A tokenized row: as many labels as tokens; label j belongs to token j."""

    @property
    def input_ids(self) -> Sequence[int]: ...

    @property
    def labels(self) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as tensors, in one of two layouts: one after the other in one long row, or padded to one length.

    Attributes:
        input_ids: (1, tokens) or (rows, length).
        attention_mask: (rows, length), 1 for tokens and 0 for padding, by length and not by id; in one long row what
            the attention kernel wants there, maybe nothing.
        targets: As `input_ids`: the label of the next token.
        kept: Columns in which some row has a target: the only ones whose logits are needed; never empty.
        tokens: Real tokens.
        labels: Targets that count.
        positions: For one long row: each token's place in its document.
        bounds: For one long row: where documents begin, and the end.
        longest: For one long row: the length of the longest document.
        split_on_host: For one long row: the attention kernel splits by the bounds in Python, so they stay in main
            memory (read on a GPU, each layer would wait for them).
        ends: The model's last layer is told which columns are kept, and finishes no others.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    targets: torch.Tensor
    kept: torch.Tensor
    tokens: int
    labels: int
    positions: torch.Tensor | None = None
    bounds: torch.Tensor | None = None
    longest: int = 0
    split_on_host: bool = False
    ends: bool = False

    def to(self, device: torch.device, *, pin: bool = False) -> Batch:
        """The same batch on a device; from pinned memory the copies do not keep the program waiting."""
        stay = {"bounds"} if self.split_on_host else set()
        moved = {
            name: _copied(value, device, pin=pin)
            for name in self.__slots__
            if isinstance(value := getattr(self, name), torch.Tensor) and name not in stay
        }
        return replace(self, **moved)

    @property
    def inputs(self) -> dict[str, Any]:
        """What the model is called with."""
        if self.positions is None:
            return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.positions,
            "cu_seq_lens_q": self.bounds,
            "cu_seq_lens_k": self.bounds,
            "max_length_q": self.longest,
            "max_length_k": self.longest,
            **({KEPT: self.kept} if self.ends else {}),
        }


def padded(rows: Sequence[TokenRow], pad_token_id: int, multiple: int = 1) -> Batch:
    """Pad rows (of packs: their documents) on the right to the longest of them, rounded up to `multiple`."""
    rows = documents(rows)
    width = -(-max(len(row.input_ids) for row in rows) // multiple) * multiple
    ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    targets = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        ids[index, :length] = torch.as_tensor(row.input_ids)
        mask[index, :length] = 1
        targets[index, : length - 1] = torch.as_tensor(row.labels)[1:]
    learned = targets != IGNORED
    return Batch(ids, mask, targets, _kept(learned), int(mask.sum()), int(learned.sum()))


def _copied(tensor: torch.Tensor, device: torch.device, *, pin: bool) -> torch.Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if pin and device.type == "cuda" else tensor.to(device)


def in_one_row(rows: Sequence[TokenRow], mask: torch.Tensor | None = None) -> Batch:
    """Put rows (of packs: their documents) one after the other: nothing is padded.

    Args:
        rows: At least one.
        mask: What the attention kernel wants in place of a mask; one in main memory splits by the bounds there.
    """
    rows = documents(rows)
    lengths = torch.tensor([len(row.input_ids) for row in rows])
    bounds = functional.pad(lengths.cumsum(0), (1, 0))
    ids = torch.cat([torch.as_tensor(row.input_ids) for row in rows])
    targets = torch.cat([torch.as_tensor(row.labels) for row in rows]).roll(-1)
    targets[bounds[1:] - 1] = IGNORED  # no document predicts the first token of the next
    positions = torch.arange(len(ids)) - bounds[:-1].repeat_interleave(lengths)
    learned = targets != IGNORED
    return Batch(
        input_ids=ids[None],
        attention_mask=mask,
        targets=targets[None],
        kept=_kept(learned[None]),
        tokens=len(ids),
        labels=int(learned.sum()),
        positions=positions[None],
        bounds=bounds.int(),
        longest=int(lengths.max()),
        split_on_host=mask is not None and mask.device.type == "cpu",
    )


def documents(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The rows, and in place of each pack its documents."""
    return [item for row in rows for item in (unpack(row) if isinstance(row, Pack) else (row,))]


def _kept(learned: torch.Tensor) -> torch.Tensor:
    kept = learned.any(dim=0).nonzero().squeeze(1)
    # with nothing to learn here, other processes may still wait for this one's gradients
    return kept if len(kept) else torch.zeros(1, dtype=torch.long)


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
