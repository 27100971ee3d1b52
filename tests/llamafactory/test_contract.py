"""What holds for every fine-tuner holds for this one, for real."""

from __future__ import annotations

from llamafarm.testing.contracts import FineTunerContract
from llamafarm_tuners.llamafactory.tuner import LlamaFactoryTuner


class TestLlamaFactory(FineTunerContract):
    component = LlamaFactoryTuner
    short_run = {"method": "lora", "training": {"max_steps": 3, "batch_size": 4}}
