"""The method `lora`."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from llamafarm.api import AdapterSpec, Method, RunContext
from llamafarm_methods.config import LoraConfig

if TYPE_CHECKING:
    from torch import nn


class Lora(Method[LoraConfig]):
    """Low-rank adapters on the linear layers; the base stays as it is."""

    name = "lora"
    training_defaults = MappingProxyType({"learning_rate": 2e-4})

    def adapter(self) -> AdapterSpec:
        """Rank, scale and targets as configured, alpha resolved."""
        return AdapterSpec("lora", {**self.config.model_dump(exclude={"type"}), "alpha": self.config.scale_numerator})

    def apply(self, model: nn.Module, run: RunContext) -> nn.Module:
        """Add the adapters.

        Raises:
            ModelError: If a name matches nothing.
        """
        from llamafarm_methods._peft import attach_lora

        return attach_lora(model, self.config, run)
