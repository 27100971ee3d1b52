"""What the main thread of this process is at, so that the heartbeat can tell work from a thread that stands still.

A thread that waits for a disk which does not answer cannot say so; that it says nothing is all there is to see. How
long that may take depends on what it is at, and is learned from how long the same took before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

TIMES: Final = 10
"""How many times the longest so far something may take."""

UNKNOWN: Final = 300.0
"""Seconds that what was not done before may take at least: the first step compiles, the first checkpoint is large."""


class Progress:
    """Signs of life of one thread, to be read by another."""

    def __init__(self) -> None:
        self._now: tuple[int, str] = (0, "")
        self._since = time.monotonic()
        self._longest: dict[str, float] = {}

    @property
    def now(self) -> tuple[int, str]:
        """How many signs there were, and what the thread has been at since the last; `""`: nothing with a limit."""
        return self._now

    def at(self, doing: str) -> None:
        """Give a sign: what was done is done, or the next part of it begins. Costs less than a microsecond."""
        count, before = self._now
        now = time.monotonic()
        if before:
            self._longest[before] = max(self._longest.get(before, 0.0), now - self._since)
        self._since, self._now = now, (count + 1, doing)

    def sign(self) -> None:
        """Give a sign in the midst of something."""
        self.at(self._now[1])

    def rest(self) -> None:
        """Go over to what may take as long as it takes."""
        self.at("")

    @contextmanager
    def elsewhere(self, doing: str = "") -> Iterator[None]:
        """Do something else for a while; without a name, wait for other processes, which have limits of their own."""
        before = self._now[1]
        self.at(doing)
        try:
            yield
        finally:
            self.at(before)

    def longest(self, doing: str) -> float | None:
        """Seconds that a part of it took at most; None: it was not done before."""
        return self._longest.get(doing)

    def allowed(self, doing: str, limit: float) -> float:
        """Seconds that a part of it may take, with a limit on silence of `limit` seconds."""
        longest = self.longest(doing)
        return max(TIMES * limit, UNKNOWN) if longest is None else max(limit, TIMES * longest)


PROGRESS: Final = Progress()
"""That of this process, which has one main thread."""
