"""Which number formats a run uses on its device."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal

from llamafarm.api import BaseModelConfig, DeviceSpec, FineTunerConfig, RunPlan, TrainingConfig

Autocast = Literal["no", "bf16", "fp16"]
DType = Literal["float32", "bfloat16", "float16"]


def autocast(training: TrainingConfig, plan: RunPlan) -> Autocast:
    """Format of the products under autocast. fp16 is for CUDA; where both are set, the one that was given wins."""
    fp16 = training.fp16 and plan.device.type == "cuda"
    bf16 = training.bf16 and plan.device.details.get("bf16", True)
    if bf16 and not (fp16 and "training.fp16" in plan.given and "training.bf16" not in plan.given):
        return "bf16"
    return "fp16" if fp16 else "no"


def weights(base: BaseModelConfig, mixed: Autocast, device: DeviceSpec, *, changes_base: bool) -> DType:
    """Format of the base's weights: fp32 when they are trained, else as asked, as far as the device computes in it."""
    if changes_base:
        return "float32"
    if base.torch_dtype == "auto":
        return "bfloat16" if mixed == "bf16" and device.type == "cuda" else "float32"
    return "float32" if base.torch_dtype == "float16" and device.type == "cpu" else base.torch_dtype


def quantization(options: Mapping[str, Any], base: BaseModelConfig, device: DeviceSpec) -> dict[str, Any]:
    """What the method or the base model asks for, with the compute format settled for the device."""
    settled = dict(options)
    if not settled and base.load_in_4bit:
        settled = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    if not settled and base.load_in_8bit:
        settled = {"load_in_8bit": True}
    if settled.get("load_in_4bit"):
        asked = settled.get("bnb_4bit_compute_dtype", "auto")
        on_cpu = device.type == "cpu"
        if asked == "auto" or (on_cpu and asked == "float16"):
            asked = "float32" if on_cpu else "bfloat16"
        settled["bnb_4bit_compute_dtype"] = asked
    return settled


def attention_asked(config: FineTunerConfig, plan: RunPlan) -> str:
    """The attention kernel that is asked for, `use_flash_attention` taken into account; maybe `auto`."""
    chosen = config.base_model.attn_implementation
    if config.training.use_flash_attention and "base_model.attn_implementation" not in plan.given:
        return "flash_attention_2"
    return chosen


def attention(config: FineTunerConfig, plan: RunPlan) -> str | None:
    """The attention kernel to load the model with; None leaves it to what the architecture supports."""
    asked = attention_asked(config, plan)
    if asked == "flash_attention_2" and (plan.device.type != "cuda" or find_spec("flash_attn") is None):
        return None
    return None if asked == "auto" else asked
