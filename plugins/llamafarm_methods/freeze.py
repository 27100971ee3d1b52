"""The method `freeze`."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from llamafarm.api import AdapterSpec, Config, Method, RunContext
from llamafarm_methods.config import split_names

if TYPE_CHECKING:
    from torch import nn


class FreezeConfig(Config):
    """Which part of the model is trained; everything else is frozen."""

    freeze_trainable_layers: int = Field(
        2, description="Transformer layers to train: the last n; the first n if negative; 0: none."
    )
    freeze_trainable_modules: tuple[str, ...] = Field(
        ("all",), description="Modules to train within those layers (`self_attn`, `mlp`, `q_proj` …); `all` of them."
    )
    freeze_extra_modules: tuple[str, ...] = Field(
        (), description="Modules to train outside the layers (`embed_tokens`, `norm`, `lm_head`)."
    )

    @field_validator("freeze_trainable_modules", "freeze_extra_modules", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return split_names(value) if value else ()


class Freeze(Method[FreezeConfig]):
    """Some layers of the base are trained as they are, in fp32; the result is a whole model."""

    name = "freeze"
    training_defaults = MappingProxyType({"learning_rate": 5e-5})

    def adapter(self) -> AdapterSpec:
        """Nothing is added: a part of the base itself changes."""
        options = self.config.model_dump(mode="json", exclude={"type"})
        return AdapterSpec("freeze", options, changes_base=True, bits=frozenset())

    def apply(self, model: nn.Module, run: RunContext) -> nn.Module:
        """Let the chosen layers and modules train.

        Raises:
            ModelError: If a name matches nothing, or there are not as many layers.
        """
        from llamafarm_methods._freeze import thaw

        return thaw(model, self.config, run)
