"""Configurations of the LoRA family."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from llamafarm.api import Config
from llamafarm_methods.targets import parse_targets

_LAYER_LIST = re.compile(r"\w+(\.\w+)*")

Layer = Annotated[int, Field(ge=0)]


class LoraConfig(Config):
    """Low-rank adapters beside the frozen weights."""

    aliases = MappingProxyType(
        {
            "lora_r": "r",
            "lora_rank": "r",
            "lora_alpha": "alpha",
            "lora_dropout": "dropout",
            "lora_target": "target_modules",
            "lora_modules": "target_modules",
            "lora_target_modules": "target_modules",
            "lora_modules_to_save": "modules_to_save",
            "additional_target": "modules_to_save",
        }
    )

    r: Annotated[int, Field(ge=1)] = Field(16, description="Rank of the adapters.")
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Scale: updates are multiplied by alpha / r; 2 r if absent."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="Dropout before the adapters, in training.")
    target_modules: str | tuple[str, ...] = Field(
        "auto",
        description="Layers to adapt: a list of names, names in one string, a simple pattern, or `auto`/`all`: every "
        "linear layer but the output head.",
    )
    bias: Literal["none", "all", "lora_only"] = Field("none", description="Biases that are trained too.")
    modules_to_save: tuple[str, ...] = Field((), description="Modules that are trained and saved whole.")
    layers_to_transform: tuple[Layer, ...] | None = Field(
        None, description="Indices of the transformer layers to adapt; all if absent."
    )
    layers_pattern: str | None = Field(
        None, description="Name of the model's list of layers (`layers`, `h`), where it is not found by itself."
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(r).")
    init_lora_weights: bool | str = Field(
        True, description="`true`: no change at the start; `gaussian`, `orthogonal`, `olora`, `pissa`, `pissa_niter_N`."
    )

    @property
    def scale_numerator(self) -> float:
        """The effective alpha."""
        return self.alpha if self.alpha is not None else 2.0 * self.r

    @field_validator("target_modules", mode="before")
    @classmethod
    def _targets(cls, value: Any) -> Any:
        return parse_targets(value)

    @field_validator("modules_to_save", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        names = parse_targets(value) if isinstance(value, str) else value
        return (names,) if isinstance(names, str) else names

    @field_validator("layers_to_transform", mode="before")
    @classmethod
    def _one_layer(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @field_validator("layers_pattern")
    @classmethod
    def _layer_list(cls, value: str | None) -> str | None:
        if value and not _LAYER_LIST.fullmatch(value):
            raise ValueError("it is the name of the model's list of layers, e.g. 'layers', not a pattern")
        return value

    @field_validator("init_lora_weights")
    @classmethod
    def _known_init(cls, value: bool | str) -> bool | str:
        if isinstance(value, str) and not re.fullmatch(r"gaussian|orthogonal|olora|pissa|pissa_niter_[1-9]\d*", value):
            raise ValueError("expected true, false, gaussian, orthogonal, olora, pissa or pissa_niter_N")
        return value

    @model_validator(mode="after")
    def _pattern_needs_layers(self) -> Self:
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern has no effect without layers_to_transform")
        return self


class QuantizationConfig(Config):
    """How the frozen base is stored."""

    load_in_4bit: bool | None = Field(None, description="4 bits a weight; the default unless load_in_8bit is set.")
    load_in_8bit: bool = Field(False, description="8 bits a weight (LLM.int8).")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("nf4", description="4-bit number format.")
    bnb_4bit_use_double_quant: bool = Field(True, description="Quantize the scales too.")
    bnb_4bit_compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the products; `auto`: bfloat16 on CUDA, float32 on the CPU."
    )

    @model_validator(mode="after")
    def _one_width(self) -> Self:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit exclude each other")
        if self.load_in_4bit is False and not self.load_in_8bit:
            raise ValueError("neither 4 nor 8 bits: use the method 'lora' for a base that is not quantized")
        return self

    def options(self) -> dict[str, Any]:
        """What applies to the width that was chosen."""
        if self.load_in_8bit:
            return {"load_in_8bit": True}
        four_bit = {name for name in type(self).model_fields if name.startswith("bnb_4bit_")}
        return {"load_in_4bit": True, **self.model_dump(include=four_bit)}


class QloraConfig(LoraConfig):
    """LoRA on a quantized base."""

    quantization: QuantizationConfig = Field(
        default_factory=QuantizationConfig, description="How the frozen base is stored."
    )
