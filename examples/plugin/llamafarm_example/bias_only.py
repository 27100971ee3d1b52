"""Train biases and norms only (BitFit: Ben Zaken, Ravfogel, Goldberg, 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import Field

from llamafarm.api import AdapterSpec, Config, Method, RunContext
from llamafarm.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


class BiasOnlyConfig(Config):
    """Configuration of `bias-only`."""

    norms: bool = Field(True, description="Also train the weights of norm layers; many models have no biases at all.")


class BiasOnly(Method[BiasOnlyConfig]):
    """Trains the base's own biases and norm weights, and leaves every matrix as it is."""

    name = "bias-only"
    training_defaults = MappingProxyType({"learning_rate": 1e-3, "weight_decay": 0.0})

    def adapter(self) -> AdapterSpec:
        """Nothing is added: weights of the base change, so the whole model is saved, as with `full`."""
        return AdapterSpec(kind="full", options={"norms": self.config.norms}, changes_base=True)

    def apply(self, model: nn.Module, run: RunContext) -> nn.Module:
        """Freeze everything but biases and norms.

        Raises:
            ModelError: If the model has none of them.
        """
        model.requires_grad_(False)
        chosen = dict(self._chosen(model))
        if not chosen:
            hint = "" if self.config.norms else "set norms: true, or use lora"
            raise ModelError.of("EXAMPLE-001", "bias-only: this model has no biases to train", hint=hint)
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        run.emit("notice", message=f"bias-only: {len(chosen)} biases and norms are trained")
        return model

    def _chosen(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        for path, module in model.named_modules():
            is_norm = "norm" in type(module).__name__.lower()
            for name, parameter in module.named_parameters(prefix=path, recurse=False):
                if name.endswith("bias") or (is_norm and self.config.norms):
                    yield name, parameter
