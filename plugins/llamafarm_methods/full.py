"""The method `full`."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from llamafarm.api import AdapterSpec, Method, NoConfig, RunContext

if TYPE_CHECKING:
    from torch import nn


class Full(Method[NoConfig]):
    """All parameters are trained, in fp32; the result is a whole model."""

    name = "full"
    training_defaults = MappingProxyType({"learning_rate": 2e-5})

    def adapter(self) -> AdapterSpec:
        """Nothing is added: the base itself changes."""
        return AdapterSpec("full", changes_base=True, bits=frozenset())

    def apply(self, model: nn.Module, run: RunContext) -> nn.Module:  # the contract's signature
        """Let every parameter train."""
        return model.requires_grad_(True)
