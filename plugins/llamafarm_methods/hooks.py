"""Registers the components of this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llamafarm.api import Method, hookimpl
from llamafarm_methods.bos_scaling import BosScaling
from llamafarm_methods.bridged import BRIDGED, REFUSED
from llamafarm_methods.dora import Dora
from llamafarm_methods.freeze import Freeze
from llamafarm_methods.full import Full
from llamafarm_methods.lora import Lora
from llamafarm_methods.qlora import Qlora


@hookimpl
def llamafarm_methods() -> Sequence[type[Method[Any]]]:
    """The methods of this package."""
    return [Lora, Qlora, Dora, Full, Freeze, BosScaling, *BRIDGED]


@hookimpl
def llamafarm_refused_methods() -> Sequence[tuple[str, str]]:
    """Methods of PEFT that this package leaves out."""
    return REFUSED
