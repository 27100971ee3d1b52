"""Packs: several rows in one, so that little is computed on padding. The rows stay documents of their own."""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llamafarm.data.fit import TokenizedRow
from llamafarm.data.stored import Stored, lengths_of


@dataclass(slots=True)
class Pack:
    """Documents one after the other.

    Attributes:
        input_ids: Token ids of all documents.
        labels: Those of the documents; the first of each never counts, as nothing before it predicts it.
        positions: From 0 on in each document: where a 0 stands, one begins.
    """

    input_ids: list[int]
    labels: list[int]
    positions: list[int]


class Packs(Stored[Pack]):
    """Packs that are joined when they are asked for.

    Attributes:
        lengths: Tokens of each.
    """

    def __init__(self, rows: Sequence[TokenizedRow], chosen: Sequence[Sequence[int]]) -> None:
        sizes = lengths_of(rows)
        self.lengths = [sum(sizes[index] for index in indices) for indices in chosen]
        super().__init__(lambda number: join([rows[index] for index in chosen[number]]), range(len(chosen)))


def pack(rows: Sequence[TokenizedRow], capacity: int, seed: int) -> Packs:
    """Pack rows, best fit decreasing, into packs of at most `capacity` tokens; a longer row is a pack of its own.

    Which of several equally long rows goes where, and the order within a pack, are the seed's.
    """
    return Packs(rows, best_fit(lengths_of(rows), capacity, seed))


def best_fit(lengths: Sequence[int], capacity: int, seed: int) -> list[list[int]]:
    """Indices of the rows of each pack: the longest first, each into the fullest pack that has room for it."""
    generator = random.Random(f"{seed}/packs")  # noqa: S311  # an order, not a secret
    order = list(range(len(lengths)))
    generator.shuffle(order)
    order.sort(key=lambda index: -lengths[index])
    packs: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, pack), sorted
    for index in order:
        at = bisect_left(free, (lengths[index], -1))
        if at < len(free):
            room, number = free.pop(at)
        else:
            room, number = capacity, len(packs)
            packs.append([])
        packs[number].append(index)
        if room - lengths[index] > 0:
            insort(free, (room - lengths[index], number))
    for chosen in packs:
        generator.shuffle(chosen)
    return packs


def join(rows: Sequence[TokenizedRow]) -> Pack:
    """The rows as the documents of one pack."""
    return Pack(
        [token for row in rows for token in row.input_ids],
        [label for row in rows for label in row.labels],
        [position for row in rows for position in range(len(row.input_ids))],
    )


def unpack(packed: Pack) -> Iterator[TokenizedRow]:
    """The documents of a pack as rows again."""
    starts = [at for at, position in enumerate(packed.positions) if position == 0]
    for start, end in zip(starts, [*starts[1:], len(packed.positions)], strict=True):
        yield TokenizedRow(packed.input_ids[start:end], packed.labels[start:end])
