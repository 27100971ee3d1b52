"""Registers the components of this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llamafarm.api import HardwareProfile, hookimpl


@hookimpl
def llamafarm_hardware_profiles() -> Sequence[type[HardwareProfile[Any]]]:
    """The profiles of this package."""
    from llamafarm_hardware.cpu import CpuProfile
    from llamafarm_hardware.cuda import CudaProfile
    from llamafarm_hardware.mps import MpsProfile

    return [CudaProfile, MpsProfile, CpuProfile]
