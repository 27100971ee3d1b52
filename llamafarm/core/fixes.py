"""What would have fitted, where the memory of a run has not sufficed: estimated, and told with the error."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from llamafarm.core.estimate import Advice, after_failure
from llamafarm.core.registry import Registry
from llamafarm.core.request import Request
from llamafarm.errors import HardwareError, LlamaFarmError, Problem

_OUT_OF_MEMORY: Final = ("LF-HARDWARE-010", "LF-HARDWARE-011")


@contextmanager
def fixes_told(request: Request, registry: Registry) -> Iterator[None]:
    """While it lasts, an error that says that the memory did not suffice says also what fits, by estimate.

    Raises:
        HardwareError: The same, with more to do about it.
    """
    try:
        yield
    except HardwareError as error:
        found = _found(request, registry) if _is_memory(error) else None
        if found is None or not found.changes:
            raise
        raise HardwareError([_with_fixes(problem, found) for problem in error.problems]) from error


def _is_memory(error: HardwareError) -> bool:
    return any(problem.id in _OUT_OF_MEMORY for problem in error.problems)


def _found(request: Request, registry: Registry) -> Advice | None:
    """What fits; None where nobody can tell, or there is no memory left to tell it."""
    try:
        return after_failure(request, registry)
    except (LlamaFarmError, MemoryError, OSError, ArithmeticError, LookupError, TypeError, ValueError):
        return None


def _with_fixes(problem: Problem, found: Advice) -> Problem:
    if problem.id not in _OUT_OF_MEMORY:
        return problem
    ways = [
        f"{' '.join(f'--set {shlex.quote(text)}' for text in change.sets)} ({change.estimate.needed / 2**30:.1f} GiB)"
        for change in found.changes
    ]
    has = found.estimate.available / 2**30
    return replace(problem, hint=f"begin anew with --overwrite and what fits in {has:.1f} GiB: {', or '.join(ways)}")
