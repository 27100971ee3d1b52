from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llamafarm.api import DeviceSpec, Method, RunPlan
from llamafarm_methods.lora import Lora
from llamafarm_tuners.pytorch.config import PytorchConfig

sys.path.append(str(Path(__file__).parent))  # for fast_oracle, which not every test here needs

CPU = DeviceSpec("cpu", "a CPU")


@pytest.fixture
def make():
    """Build a configuration and a plan for it; `given` lists the paths that somebody wrote down."""

    def build(
        options: Mapping[str, Any] | None = None,
        given: tuple[str, ...] = (),
        device: DeviceSpec = CPU,
        method: Method[Any] | None = None,
    ) -> tuple[PytorchConfig, RunPlan]:
        methods = (method or Lora(Lora.Config()),)
        plan = RunPlan("test", methods, device, Path("output"), (), {path: f"strategy.yaml:{path}" for path in given})
        return PytorchConfig.model_validate(options or {}), plan

    return build
