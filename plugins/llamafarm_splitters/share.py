"""How much is held out, in the ways it is spelled."""

from __future__ import annotations

from fractions import Fraction
from types import MappingProxyType
from typing import Annotated, Self

from pydantic import Field, model_validator

from llamafarm.api import Config
from llamafarm.errors import DataError

DEFAULT = Fraction(10, 100)

Percentage = Annotated[float, Field(strict=True, gt=0, le=50, allow_inf_nan=False)]
Part = Annotated[float, Field(strict=True, gt=0, le=0.5, allow_inf_nan=False)]


class ShareConfig(Config):
    """The share of distinct rows that is held out: a percentage or a fraction, 10 % by default."""

    aliases = MappingProxyType({"eval_percent": "eval_percentage", "eval_split": "eval_fraction"})

    eval_percentage: Percentage | None = Field(None, description="Held-out rows in percent of all; default 10.")
    eval_fraction: Part | None = Field(None, description="The same as a fraction: 0.1 is 10 %.")

    @model_validator(mode="after")
    def _one_share(self) -> Self:
        given = [name for name in self.share_fields() if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} say the same thing: give one of them")
        return self

    @classmethod
    def share_fields(cls) -> tuple[str, ...]:
        """The fields of which one may be given."""
        return ("eval_percentage", "eval_fraction")

    @property
    def share(self) -> Fraction:
        """The share as written in decimals, exactly."""
        if self.eval_fraction is not None:
            return Fraction(str(self.eval_fraction))
        return DEFAULT if self.eval_percentage is None else Fraction(str(self.eval_percentage)) / 100


class CountConfig(ShareConfig):
    """The share, or a number of rows."""

    eval_rows: int | None = Field(None, strict=True, ge=1, description="Held-out rows as a number.")

    @classmethod
    def share_fields(cls) -> tuple[str, ...]:
        """The fields of which one may be given."""
        return (*super().share_fields(), "eval_rows")

    def number(self, rows: int) -> int:
        """How many of `rows` (at least 2) are held out: the share rounded half up, at least one row on each side.

        Raises:
            DataError: If `eval_rows` leaves nothing to train on.
        """
        wanted = self.eval_rows
        if wanted is None:
            half_up = (2 * rows * self.share.numerator + self.share.denominator) // (2 * self.share.denominator)
            return min(max(half_up, 1), rows - 1)
        if wanted >= rows:
            message = f"eval_rows is {wanted}, and there are {rows} distinct rows: none is left to train on"
            raise DataError.of("LF-DATA-025", message, hint=f"hold out at most {rows - 1}")
        return wanted
