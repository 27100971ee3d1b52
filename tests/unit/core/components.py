"""Small real components for tests of the host, so that it is tested without the built-in plugins."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from pydantic import Field

from llamafarm.api import (
    AdapterSpec,
    Config,
    DataSplitter,
    DeviceSpec,
    FineTuner,
    FineTunerConfig,
    HardwareProfile,
    Method,
    NoConfig,
    Probe,
    Suggestion,
    TrainingResult,
)
from llamafarm.core.distributions import Plugin
from llamafarm.core.registry import FAMILIES, Registered, Registry


class LoraConfig(Config):
    aliases = MappingProxyType({"lora_r": "r", "lora_alpha": "alpha", "lora_rank": "r"})

    r: int = Field(8, description="Rank.")
    alpha: int | None = Field(None, description="Scale.")
    target_modules: tuple[str, ...] = Field((), description="Modules.")


class Lora(Method[LoraConfig]):
    name = "lora"

    def adapter(self):
        return AdapterSpec("lora")

    def apply(self, model, run):
        return model


class Dora(Lora):
    name = "dora"


class Full(Method[NoConfig]):
    name = "full"
    training_defaults = MappingProxyType({"learning_rate": 2e-5})

    def adapter(self):
        return AdapterSpec("full", changes_base=True)

    def apply(self, model, run):
        return model


class Pytorch(FineTuner[FineTunerConfig]):
    name = "pytorch"
    adapter_kinds = frozenset({"lora", "full"})

    def fit(self, plan, data, run):
        run.emit("log", step=1, total_steps=1, loss=1.0)
        (plan.output_dir / "adapter_model.safetensors").write_bytes(b"weights")
        return TrainingResult({"train_loss": 1.0}, plan.output_dir)


class Cpu(HardwareProfile[NoConfig]):
    name = "cpu"
    priority = 10

    def probe(self):
        return Probe(DeviceSpec("cpu", "test cpu", 2), "always there")

    def suggest(self, device):
        return [Suggestion("training.batch_size", 2, "small caches")]


class Cuda(HardwareProfile[NoConfig]):
    name = "cuda"
    priority = 30

    def probe(self):
        return Probe(None, "no driver")


class HashConfig(Config):
    aliases = MappingProxyType({"eval_percent": "eval_percentage"})

    eval_percentage: int = Field(10, ge=1, le=50, description="Percent held out.")


class Hash(DataSplitter[HashConfig]):
    name = "hash"

    def held_out(self, rows):
        return [row.index % 10 == 0 for row in rows]


def registry(*classes: type, **changes: Any) -> Registry:
    """A registry of these components, or of all above."""
    plugin = Plugin("test", "llamafarm-test", "1.0")
    components: dict[str, dict[str, Registered]] = {family: {} for family in FAMILIES}
    for component in classes or (Lora, Dora, Full, Pytorch, Cpu, Cuda, Hash):
        components[component.family][component.name] = Registered(component, plugin)
    return Registry(**{"plugins": (plugin,), "components": components, **changes})
