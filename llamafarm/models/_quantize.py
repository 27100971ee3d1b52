"""Quantized bases through bitsandbytes."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, GPTQConfig

from llamafarm.errors import PluginError, StrategyError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def quantization_config(options: Mapping[str, Any]) -> BitsAndBytesConfig:
    """Translate `AdapterSpec.quantization` for transformers.

    Raises:
        PluginError: If bitsandbytes is not installed.
        StrategyError: If both widths are asked for.
    """
    if options.get("load_in_4bit") and options.get("load_in_8bit"):
        raise StrategyError.of("LF-TRAIN-012", "load_in_4bit and load_in_8bit exclude each other", hint="choose one")
    if find_spec("bitsandbytes") is None:
        raise PluginError.of(
            "LF-PLUGIN-023", "a quantized base needs bitsandbytes", hint="pip install 'llamafarm[qlora]'"
        )
    arguments = dict(options)
    if dtype := arguments.get("bnb_4bit_compute_dtype"):
        arguments["bnb_4bit_compute_dtype"] = _DTYPES[dtype]
    return BitsAndBytesConfig(**arguments)


def gptq_with_gradients() -> GPTQConfig:
    """How a base that comes as GPTQ is loaded on a CPU: by the kernel there that passes gradients.

    transformers takes only the kernel from it; everything else stands in the model's own config.json.
    """
    return GPTQConfig(bits=4, backend="torch")


def keep_weights_as_packed(model: nn.Module) -> None:
    """Switch off an inference-only repacking of 4-bit weights on CPUs with AVX512-BF16.

    bitsandbytes repacks each layer at its first evaluation, does not undo it, and from then on hands wrong gradients
    to all layers below, silently.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
