"""LLaMA-Factory's argument names, beside the configuration that all fine-tuners share."""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal

from pydantic import Field

from llamafarm.api import FineTunerConfig
from llamafarm.api.config import Count, Fraction, NonNegative


class LlamaFactoryConfig(FineTunerConfig):
    """Options of LLaMA-Factory as it spells them."""

    aliases = MappingProxyType({**FineTunerConfig.aliases, "lora_modules": "lora_target"})

    stage: Literal["sft", "pt", "rm", "ppo", "dpo", "kto"] = Field("sft", description="Training stage.")
    finetuning_type: Literal["lora", "qlora", "full", "freeze", "oft"] = Field(
        "lora", description="How parameters are adapted; `qlora` means lora on a base in 4 bits."
    )
    template: str | None = Field(
        None, description="Chat template by LLaMA-Factory's name; default: the tokenizer's own."
    )
    quantization_bit: Literal[4, 8] | None = Field(None, description="Load the frozen base in 4 or 8 bits.")
    double_quantization: bool = Field(True, description="Quantize the quantization constants too.")
    lora_rank: Count = Field(8, description="Rank.")
    lora_alpha: NonNegative | None = Field(None, description="Scale; default twice the rank.")
    lora_dropout: Fraction = Field(0.0, description="Dropout before the adapter.")
    lora_target: str = Field("all", description="Modules to adapt, separated by commas, or `all`.")
    packing: bool = Field(False, description="Put several rows into one sequence.")
    neat_packing: bool = Field(False, description="Pack without attention across rows.")
    upcast_layernorm: bool = Field(False, description="Keep normalization weights in fp32.")
    use_unsloth: bool = Field(False, description="Use the unsloth kernels.")
