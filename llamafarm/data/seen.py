"""Remembers keys in little memory."""

from __future__ import annotations

from array import array


class Seen:
    """A set of evenly spread 64-bit numbers above 0, at 12 to 24 bytes a number: Python's own takes 100."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0

    def add(self, key: int) -> bool:
        """Remember a number; tell whether it is new."""
        slot = _find(self._slots, key)
        if self._slots[slot]:
            return False
        self._slots[slot] = key
        self._count += 1
        if 3 * self._count > 2 * len(self._slots):
            self._grow()
        return True

    def _grow(self) -> None:
        slots = array("Q", bytes(8 * 2 * len(self._slots)))
        for key in self._slots:
            if key:
                slots[_find(slots, key)] = key
        self._slots = slots


def _find(slots: array[int], key: int) -> int:
    """The slot that holds the key, or the empty one where it belongs."""
    last = len(slots) - 1
    slot = key & last
    while slots[slot] not in (key, 0):
        slot = (slot + 1) & last
    return slot
