"""Which number formats a run uses on its device. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from llamafarm.api import BaseModelConfig, DeviceSpec, FineTunerConfig, RunPlan, TrainingConfig

Autocast = Literal["no", "bf16", "fp16"]
DType = Literal["float32", "bfloat16", "float16"]


def computes(device: DeviceSpec, number_format: Literal["bf16", "fp16", "tf32"]) -> bool:
    """Whether a device has products in a format, as its profile says; by default bf16 anywhere, the others on CUDA."""
    return bool(device.details.get(number_format, number_format == "bf16" or device.type == "cuda"))


def autocast(training: TrainingConfig, plan: RunPlan) -> Autocast:
    """Format of the products under autocast; where both 16-bit ones are set, the one that was given wins."""
    if training.pure_bf16:
        return "no"
    fp16 = training.fp16 and computes(plan.device, "fp16")
    bf16 = training.bf16 and computes(plan.device, "bf16")
    if bf16 and not (fp16 and "training.fp16" in plan.given and "training.bf16" not in plan.given):
        return "bf16"
    return "fp16" if fp16 else "no"


def weights(base: BaseModelConfig, mixed: Autocast, device: DeviceSpec, *, changes_base: bool) -> DType:
    """Format of the base's weights: fp32 when they are trained, else as asked, as far as the device computes in it.

    A format that autocast contradicts gives way to autocast's.
    """
    if changes_base:
        return "float32"
    if base.torch_dtype == "auto":
        return "bfloat16" if mixed == "bf16" and device.type == "cuda" else "float32"
    if base.torch_dtype == "bfloat16" and not computes(device, "bf16"):
        return "float32"
    if base.torch_dtype == "float16":
        return "float32" if device.type == "cpu" else "bfloat16" if mixed == "bf16" else "float16"
    return base.torch_dtype


def trains_parts(plan: RunPlan) -> bool:
    """Whether parts of the base are trained whole beside an adapter (`modules_to_save`)."""
    return any(method.adapter().options.get("modules_to_save") for method in plan.methods)


def base_format(config: FineTunerConfig, plan: RunPlan) -> DType:
    """Format of the base's weights, everything considered.

    Parts that are trained whole are fp32; without autocast, their neighbours have to be as well.
    """
    if config.training.pure_bf16:
        return "bfloat16"
    mixed = autocast(config.training, plan)
    changes_base = any(method.adapter().changes_base for method in plan.methods)
    one_format = mixed == "no" and trains_parts(plan)
    return weights(config.base_model, mixed, plan.device, changes_base=changes_base or one_format)


def trained_format(training: TrainingConfig) -> DType:
    """Format of the weights that are trained: fp32, so that small updates count, unless told otherwise in words."""
    return "bfloat16" if training.pure_bf16 else "float32"


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
            asked = "float32" if on_cpu else "bfloat16" if computes(device, "bf16") else "float16"
        settled["bnb_4bit_compute_dtype"] = asked
    return settled
