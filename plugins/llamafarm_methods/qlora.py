"""The method `qlora`."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from llamafarm.api import AdapterSpec, Method, RunContext
from llamafarm_methods.config import QloraConfig

if TYPE_CHECKING:
    from torch import nn


class Qlora(Method[QloraConfig]):
    """LoRA on a base that is stored in 4 or 8 bits."""

    name = "qlora"
    training_defaults = MappingProxyType({"learning_rate": 2e-4})

    def adapter(self) -> AdapterSpec:
        """As for `lora`, with the quantization of the base."""
        options = self.config.model_dump(exclude={"type", "quantization"})
        return AdapterSpec(
            "lora", {**options, "alpha": self.config.scale_numerator}, quantization=self.config.quantization.options()
        )

    def apply(self, model: nn.Module, run: RunContext) -> nn.Module:
        """Add the adapters to a model that was loaded quantized.

        Raises:
            ModelError: If a name matches nothing.
        """
        from llamafarm_methods._peft import attach_lora

        return attach_lora(model, self.config, run)
