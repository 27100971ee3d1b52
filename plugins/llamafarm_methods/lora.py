"""The method `lora`, and what its relatives have in common with it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from llamafarm.api import AdapterSpec, Method, RunContext
from llamafarm_methods.config import LoraConfig

if TYPE_CHECKING:
    from torch import nn

LoraConfigT = TypeVar("LoraConfigT", bound=LoraConfig)


class LoraFamily(Method[LoraConfigT]):
    """Low-rank adapters, however the base is stored and whatever is trained beside them."""

    training_defaults = MappingProxyType({"learning_rate": 2e-4})

    def spec(self, quantization: Mapping[str, Any]) -> AdapterSpec:
        """Rank, scale and targets as configured, alpha resolved, on a base that is stored so."""
        options = self.config.model_dump(mode="json", exclude={"type", "quantization"})
        return AdapterSpec(
            "dora" if self.config.use_dora else "lora",
            {**options, "alpha": self.config.scale_numerator, "alpha_pattern": self.config.alphas},
            quantization=quantization,
            bits=_bits(self.config),
        )

    def learning_rates(self, model: nn.Module) -> Mapping[str, float]:
        """LoRA+: the B matrices learn faster."""
        ratio = self.config.loraplus_lr_ratio
        if ratio is None:
            return {}
        return {name: ratio for name, _ in model.named_parameters() if ".lora_B." in name}


class Lora(LoraFamily[LoraConfig]):
    """Low-rank adapters on the linear layers; the base stays as it is."""

    name = "lora"

    def adapter(self) -> AdapterSpec:
        """Rank, scale and targets as configured, alpha resolved."""
        return self.spec({})

    def apply(self, model: nn.Module, run: RunContext) -> nn.Module:
        """Add the adapters.

        Raises:
            ModelError: If a name matches nothing, or the base cannot carry them.
        """
        from llamafarm_methods._peft import attach_lora

        return attach_lora(model, self.config, run)


def _bits(config: LoraConfig) -> frozenset[int]:
    if isinstance(config.init_lora_weights, str) and config.init_lora_weights.startswith(("pissa", "olora")):
        return frozenset()
    return frozenset({4}) if config.use_dora else frozenset({4, 8})
