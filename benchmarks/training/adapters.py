"""The model that is trained: LoRA, DoRA, or LoRA on a base in 4 bits, the same for all programs that use PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from inputs import RANK
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def lora(method: str = "lora") -> peft.LoraConfig:
    """The adapter."""
    options: dict[str, Any] = {"r": RANK, "lora_alpha": 2 * RANK, "use_dora": method in ("dora", "qdora")}
    return peft.LoraConfig(**options, target_modules="all-linear", task_type="CAUSAL_LM")


def adapted(folder: Path, method: str, dtype: torch.dtype) -> Any:
    """The model with new adapters.

    Args:
        folder: Where `write_inputs` wrote.
        method: lora, dora, qlora or qdora.
        dtype: Of the base's weights; of a packed base, of its products.
    """
    arguments: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa"}
    packed = method.startswith("q")
    if packed:
        four_bits = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
        arguments["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, **four_bits)
        arguments |= {"device_map": {"": "cpu"}, "dtype": torch.float32}
    base: Any = AutoModelForCausalLM.from_pretrained(folder / "model", **arguments)
    if packed:
        from llamafarm.models._quantize import keep_weights_as_packed

        keep_weights_as_packed(base)  # else bitsandbytes' gradients are wrong after the first evaluation
        base = peft.prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    torch.manual_seed(1)
    return peft.get_peft_model(base, lora(method))
