"""The method `dora`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafarm.api import AdapterSpec, RunContext
from llamafarm_methods.config import DoraConfig
from llamafarm_methods.lora import LoraFamily

if TYPE_CHECKING:
    from torch import nn


class Dora(LoraFamily[DoraConfig]):
    """LoRA with the length of each row of a weight learned apart from its direction.

    W' = m · (W + s·B·A) / ‖W + s·B·A‖, norms and magnitudes m per output row, m starting as ‖W‖
    (https://arxiv.org/abs/2402.09353).
    """

    name = "dora"

    def adapter(self) -> AdapterSpec:
        """As for `lora`, with the quantization of the base if there is one."""
        return self.spec(self.config.quantization.options() if self.config.quantization else {})

    def apply(self, model: nn.Module, run: RunContext) -> nn.Module:
        """Add the adapters and magnitudes.

        Raises:
            ModelError: If a name matches nothing, or the base cannot carry them.
        """
        from llamafarm_methods._peft import attach_lora

        return attach_lora(model, self.config, run, self.config.magnitude_only_modules)
