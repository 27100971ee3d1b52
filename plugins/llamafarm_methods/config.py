"""Configurations of the LoRA family."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from llamafarm.api import Config
from llamafarm_methods.beginnings import CordaConfig, EvaConfig, known, takes_apart
from llamafarm_methods.ranks import require_growable
from llamafarm_methods.targets import parse_names, parse_targets

_LAYER_LIST = re.compile(r"\w+(\.\w+)*")

Layer = Annotated[int, Field(ge=0)]
Rank = Annotated[int, Field(ge=1)]
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class TargetConfig(Config):
    """Which layers are adapted, and what is trained whole besides; every adapter has it."""

    target_modules: str | tuple[str, ...] = Field(
        "auto",
        description="Layers to adapt: a list of names, names in one string, a simple pattern, `auto`/`all`/"
        "`all-linear` (every linear layer but the output head), or a tier: `conservative`, `balanced`, `aggressive`.",
    )
    exclude_modules: str | tuple[str, ...] = Field(
        (), description="Layers to leave out: a list of names, names in one string, or a simple pattern."
    )
    modules_to_save: tuple[str, ...] = Field((), description="Modules that are trained and saved whole.")
    layers_to_transform: tuple[Layer, ...] | None = Field(
        None, description="Indices of the transformer layers to adapt; all if absent."
    )
    layers_pattern: str | None = Field(
        None, description="Name of the model's list of layers (`layers`, `h`), where it is not found by itself."
    )

    @field_validator("target_modules", mode="before")
    @classmethod
    def _targets(cls, value: Any) -> Any:
        return parse_targets(value)

    @field_validator("exclude_modules", mode="before")
    @classmethod
    def _excluded(cls, value: Any) -> Any:
        return parse_names(value) if value else ()

    @field_validator("modules_to_save", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return split_names(value)

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

    @model_validator(mode="after")
    def _pattern_needs_layers(self) -> Self:
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern has no effect without layers_to_transform")
        return self


def split_names(value: Any) -> Any:
    """A list of names from a list, or from names in one string."""
    names = parse_names(value) if isinstance(value, str) else value
    return (names,) if isinstance(names, str) else names


class LoraConfig(TargetConfig):
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
            "dynamic_ranks": "ranks",
        }
    )

    r: Rank = Field(16, description="Rank of the adapters.")
    ranks: tuple[Rank, ...] = Field(
        (), description="Ranks to train with, one after the other for equal shares of the steps; the last is `r`."
    )
    alpha: Scale | None = Field(None, description="Scale: updates are multiplied by alpha / r; 2 r if absent.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="Dropout before the adapters, in training.")
    bias: Literal["none", "all", "lora_only"] = Field("none", description="Biases that are trained too.")
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(r).")
    use_dora: bool = Field(
        False, description="Learn the length of each row of a weight apart from its direction (DoRA)."
    )
    init_lora_weights: bool | str = Field(
        True,
        description="`true`: none at the start; `gaussian`, `orthogonal`, `olora`, `pissa`, `pissa_niter_N`; `eva` "
        "and `corda` look at training rows first; `loftq` makes up for what quantization took.",
    )
    eva_config: EvaConfig | None = Field(None, description="Options of `init_lora_weights: eva`.")
    corda_config: CordaConfig | None = Field(None, description="Options of `init_lora_weights: corda`.")
    rank_pattern: dict[str, Rank] = Field(
        default_factory=dict, description="Other ranks for some layers: name or simple pattern → r."
    )
    alpha_pattern: dict[str, Scale] = Field(
        default_factory=dict, description="Other scales for some layers: name or simple pattern → alpha."
    )
    trainable_token_indices: tuple[Layer, ...] = Field(
        (), description="Numbers of the tokens whose embeddings are trained too; the other rows stay as they are."
    )
    loraplus_lr_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = Field(
        None, description="LoRA+: the B matrices learn this many times faster than `learning_rate`."
    )

    @model_validator(mode="before")
    @classmethod
    def _last_rank(cls, value: Any) -> Any:
        ranks = value.get("ranks") if isinstance(value, dict) else None
        return value | {"r": ranks[-1]} if ranks and isinstance(ranks, list | tuple) and "r" not in value else value

    @model_validator(mode="after")
    def _can_grow(self) -> Self:
        if self.ranks:
            require_growable(self)
        return self

    @property
    def first_rank(self) -> int:
        """What training begins with."""
        return self.ranks[0] if self.ranks else self.r

    @property
    def scale_numerator(self) -> float:
        """The effective alpha."""
        return self.alpha if self.alpha is not None else 2.0 * self.r

    @property
    def alphas(self) -> dict[str, float]:
        """The effective `alpha_pattern`: where alpha follows the rank, it follows that of `rank_pattern` too."""
        following = {} if self.alpha is not None else {name: 2.0 * r for name, r in self.rank_pattern.items()}
        return following | self.alpha_pattern

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _patterns(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not isinstance(parsed := parse_names(name), str) and len(parsed) != 1:
                raise ValueError(f"{name!r}: give each name a value of its own")
        return value

    @field_validator("init_lora_weights")
    @classmethod
    def _known_init(cls, value: bool | str) -> bool | str:
        return known(value)

    @model_validator(mode="after")
    def _options_of_the_start(self) -> Self:
        for name, option in (("eva", self.eva_config), ("corda", self.corda_config)):
            if option is not None and self.init_lora_weights != name:
                raise ValueError(f"{name}_config has no effect without init_lora_weights: {name}")
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

    @model_validator(mode="after")
    def _fits_the_base(self) -> Self:
        require_base(self, self.quantization)
        return self


class DoraConfig(LoraConfig):
    """LoRA whose base weights keep their lengths as parameters of their own."""

    aliases = MappingProxyType({**LoraConfig.aliases, "Wdecompose_target_modules": "magnitude_only_modules"})

    use_dora: Literal[True] = Field(True, description="Always on: it is what this method is.")
    dora_simple: Literal[True] = Field(
        True,
        description="The length of the adapted weight is taken as a constant in the gradient; PEFT has no other way.",
    )
    magnitude_only_modules: tuple[str, ...] = Field(
        (), description="Layers of which only the magnitude is trained, without adapter."
    )
    quantization: QuantizationConfig | None = Field(
        None, description="Store the frozen base in 4 bits (QDoRA); as it is if absent."
    )

    @field_validator("magnitude_only_modules", mode="before")
    @classmethod
    def _magnitudes(cls, value: Any) -> Any:
        return split_names(value)

    @model_validator(mode="after")
    def _fits_the_base(self) -> Self:
        if self.quantization:
            require_base(self, self.quantization)
        if self.magnitude_only_modules and self.init_lora_weights not in (True, "gaussian"):
            raise ValueError(
                "magnitude_only_modules have no adapter, and these init_lora_weights would move weights into one; "
                "use true or gaussian"
            )
        return self


def require_base(config: LoraConfig, quantization: QuantizationConfig) -> None:
    """Refuse what a quantized base cannot carry.

    Raises:
        ValueError: With the reason.
    """
    if quantization.load_in_8bit and config.use_dora:
        raise ValueError(
            "a base in 8 bits does not go with DoRA: bitsandbytes cannot give its weights back for it; use 4"
        )
    if takes_apart(config.init_lora_weights):
        raise ValueError(
            f"init_lora_weights {config.init_lora_weights!r} takes the base's weights apart and cannot do so when they "
            "are quantized; use true, gaussian, orthogonal or eva"
        )
