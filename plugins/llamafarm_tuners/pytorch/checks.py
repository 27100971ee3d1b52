"""What can be said about a plan before anything is loaded. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from llamafarm.api import Decision, RunPlan
from llamafarm.errors import Problem
from llamafarm_tuners.pytorch.config import PytorchConfig


def check(config: PytorchConfig, plan: RunPlan) -> Iterator[Problem | Decision]:
    """Everything to refuse or explain."""
    yield from ()
