"""What LoRA's matrices start from: `init_lora_weights` and the options of the starts that look at training rows."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from llamafarm.api import Config

_NAME = re.compile(r"gaussian|orthogonal|olora|pissa|pissa_niter_[1-9]\d*|eva|corda|loftq")
_REFUSED = {"lora_ga": "it starts from gradients of the whole base, which training does not compute"}

Begin = bool | str


class EvaConfig(Config):
    """Options of `init_lora_weights: eva`."""

    rho: Annotated[float, Field(ge=1, le=64)] = Field(
        2.0, description="A layer may get up to this many times its rank, at the cost of others; 1: ranks stay."
    )
    tau: Annotated[float, Field(gt=0, le=1)] = Field(
        0.99, description="Rows are measured until the directions of two batches have this cosine."
    )
    use_label_mask: bool = Field(True, description="Measure at learned tokens alone.")
    whiten: bool = Field(False, description="Divide the directions by the roots of their singular values.")
    adjust_scaling_factors: bool = Field(True, description="Keep alpha / r where the rank changes.")


class CordaConfig(Config):
    """Options of `init_lora_weights: corda`."""

    corda_method: Literal["ipm", "kpm"] = Field(
        "ipm",
        description="`ipm` trains the directions that the rows use most, `kpm` those that they use least, which keeps "
        "what the base knows.",
    )
    samples: Annotated[int, Field(ge=1)] = Field(256, description="Training rows that are measured, at most.")


def known(value: Begin) -> Begin:
    """The value of `init_lora_weights`.

    Raises:
        ValueError: If it is none, or not offered.
    """
    if isinstance(value, str):
        if reason := _REFUSED.get(value.lower()):
            raise ValueError(f"{value!r} is not offered: {reason}; eva and corda look at training rows too")
        if not _NAME.fullmatch(value):
            message = "expected true, false, gaussian, orthogonal, olora, pissa, pissa_niter_N, eva, corda or loftq"
            raise ValueError(message)
    return value


def takes_apart(value: Begin) -> bool:
    """Whether a part of the base's weights moves into the adapter."""
    return isinstance(value, str) and value.startswith(("pissa", "olora", "corda"))


def is_measured(value: Begin) -> bool:
    """Whether something is measured before the first step: training rows, or what quantization took."""
    return value in ("eva", "corda", "loftq")
