from __future__ import annotations

from llamafarm.testing.contracts import FineTunerContract
from llamafarm_tuners.llamafactory.tuner import LlamaFactoryTuner
from llamafarm_tuners.pytorch.tuner import PytorchTuner


class TestPytorch(FineTunerContract):
    component = PytorchTuner
    short_run = {"method": "lora", "training": {"max_steps": 3, "batch_size": 4}}


class TestLlamaFactory(FineTunerContract):
    component = LlamaFactoryTuner
    trains = False
