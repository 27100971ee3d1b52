"""Registers the components of this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llamafarm.api import HardwareProfile, hookimpl


@hookimpl
def llamafarm_hardware_profiles() -> Sequence[type[HardwareProfile[Any]]]:
    """The profiles of this package."""
    from llamafarm_hardware.cpu import Cpu
    from llamafarm_hardware.cuda import Cuda
    from llamafarm_hardware.mps import Mps

    return [Cuda, Mps, Cpu]
