"""Registers the components of this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llamafarm.api import FineTuner, hookimpl
from llamafarm_tuners.llamafactory.tuner import LlamaFactoryTuner
from llamafarm_tuners.pytorch.tuner import PytorchTuner


@hookimpl
def llamafarm_fine_tuners() -> Sequence[type[FineTuner[Any]]]:
    """The fine-tuners of this package."""
    return [PytorchTuner, LlamaFactoryTuner]
