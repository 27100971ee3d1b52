"""In which precision a saved model is loaded by the commands that use it."""

from __future__ import annotations

import pytest
import torch

from llamafarm.api import DeviceSpec, Probe
from llamafarm.core.registry import load_registry
from llamafarm.core.trained import load_trained
from llamafarm_hardware.cpu import Cpu
from llamafarm_hardware.cuda import Cuda
from llamafarm_hardware.mps import Mps


@pytest.mark.parametrize("details", [{"bf16": True, "bf16_instructions": True}, {"bf16": True}])
def test_a_cpu_answers_in_what_it_trains_in(monkeypatch, details):
    """Rounding a model to bfloat16 gave other answers than the run and its evaluation had measured."""
    for profile in (Cuda, Mps):
        monkeypatch.setattr(profile, "probe", lambda self: Probe(None, "not here"))
    monkeypatch.setattr(Cpu, "probe", lambda self: Probe(DeviceSpec("cpu", "a CPU", details=details), "found"))
    model, *_ = load_trained("builtin:tiny", load_registry(()))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
