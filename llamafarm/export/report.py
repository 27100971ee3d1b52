"""What was checked, what came out, and what to do with the result: the same facts as JSON and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from llamafarm.core.output import EXPORTED
from llamafarm.errors import Problem, QualityError

REPORT_FILE: Final = EXPORTED
"""Stands in every exported folder, and marks it as one."""


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison.

    Attributes:
        name: What is compared.
        passed: Whether it holds.
        measured: What was found, in words.
        id: The error that it raises when it does not hold.
    """

    name: str
    passed: bool
    measured: str
    id: str = "LF-QUALITY-001"


@dataclass(frozen=True, slots=True)
class Report:
    """An export, described.

    Attributes:
        model: What was exported.
        target: Where to.
        dtype: Precision of the weights that were written.
        base: The base model's public name.
        methods: What made the model.
        prompts: Where the prompts of the comparison come from.
        checks: Every comparison.
        notes: What a user should know.
        commands: What to run next.
    """

    model: str
    target: str
    dtype: str
    base: str
    methods: Sequence[str]
    prompts: str
    checks: Sequence[Check] = ()
    notes: Sequence[str] = ()
    commands: Sequence[str] = ()
    figures: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"version": 1, **asdict(self)}

    def require(self) -> None:
        """Raise what did not hold.

        Raises:
            QualityError: With every check that failed.
        """
        hint = "nothing was written in its place; the adapter itself is as it was"
        problems = [
            Problem(check.id, f"{check.name}: {check.measured}", hint=hint) for check in self.checks if not check.passed
        ]
        if problems:
            raise QualityError(problems)
