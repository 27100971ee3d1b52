"""How much is held out, in the ways it is spelled."""

from __future__ import annotations

from fractions import Fraction
from types import MappingProxyType
from typing import Annotated, Self

from pydantic import Field, model_validator

from llamafarm.api import Config

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
