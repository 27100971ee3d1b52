"""Contract suites: inherit one, name your component, and the tests are there."""

from __future__ import annotations

from llamafarm.testing.contracts.component import ComponentContract
from llamafarm.testing.contracts.fine_tuner import FineTunerContract
from llamafarm.testing.contracts.hardware import HardwareContract
from llamafarm.testing.contracts.method import MethodContract
from llamafarm.testing.contracts.splitter import SplitterContract

__all__ = ["ComponentContract", "FineTunerContract", "HardwareContract", "MethodContract", "SplitterContract"]
