"""Collects what is wrong with data, so that a user sees all of it at once and not a screen too much."""

from __future__ import annotations

from llamafarm.errors import DataError, LlamaFarmError, Problem

SHOWN = 20


class ProblemLog:
    """Keeps the first `SHOWN` problems and counts the rest."""

    def __init__(self) -> None:
        self._shown: list[Problem] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, problem: Problem) -> None:
        """Record one problem."""
        self._count += 1
        if self._count <= SHOWN:
            self._shown.append(problem)

    def check(self, error: type[LlamaFarmError] = DataError) -> None:
        """Raise what was recorded, if anything was.

        Raises:
            LlamaFarmError: Of the class `error`: the first problems, and how many more there are.
        """
        if not self._count:
            return
        more = self._count - len(self._shown)
        rest = [Problem("LF-DATA-000", f"and {more} more problem{'s' * (more > 1)} not shown")] if more else []
        raise error([*self._shown, *rest])
