"""The method `qlora`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafarm.api import AdapterSpec, RunContext
from llamafarm_methods.config import QloraConfig
from llamafarm_methods.lora import LoraFamily

if TYPE_CHECKING:
    from torch import nn


class Qlora(LoraFamily[QloraConfig]):
    """LoRA on a base that is stored in 4 or 8 bits."""

    name = "qlora"

    def adapter(self) -> AdapterSpec:
        """As for `lora`, with the quantization of the base."""
        return self.spec(self.config.quantization.options())

    def apply(self, model: nn.Module, run: RunContext) -> nn.Module:
        """Add the adapters to a model that was loaded quantized.

        Raises:
            ModelError: If a name matches nothing, or the base cannot carry them.
        """
        from llamafarm_methods._peft import attach_lora

        return attach_lora(model, self.config, run)
