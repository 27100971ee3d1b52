"""Which kernels a run computes with: attention, and what is compiled. Imports no torch."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

from llamafarm.api import FineTunerConfig, RunPlan, TrainingConfig
from llamafarm.models.kernels import cpp_compiler
from llamafarm_tuners.pytorch.precision import autocast, base_format, trained_format


class Refusal(NamedTuple):
    """Why something cannot be used here.

    Attributes:
        id: The error's id, if somebody asked for it in so many words.
        reason: Why.
        hint: What to do.
    """

    id: str
    reason: str
    hint: str


def attention_asked(config: FineTunerConfig, plan: RunPlan) -> str:
    """The attention kernel that is asked for, `use_flash_attention` taken into account; maybe `auto`."""
    chosen = config.base_model.attn_implementation
    if config.training.use_flash_attention and "base_model.attn_implementation" not in plan.given:
        return "flash_attention_2"
    return chosen


def unusable_kernel(kernel: str, config: FineTunerConfig, plan: RunPlan) -> Refusal | None:
    """Why an attention kernel cannot train here; None if it can."""
    if kernel == "flex_attention" and plan.device.type != "cuda":
        reason = f"flex_attention has no backward pass on {plan.device.type}"
        return Refusal("LF-TRAIN-033", reason, "use sdpa, or leave it out")
    return _unusable_flash(config, plan) if kernel == "flash_attention_2" else None


def _unusable_flash(config: FineTunerConfig, plan: RunPlan) -> Refusal | None:
    device = plan.device
    if device.type != "cuda":
        reason = f"FlashAttention 2 runs on NVIDIA GPUs only, not on {device.type}"
        return Refusal("LF-TRAIN-006", reason, "leave it out: the device's own kernel is used")
    if not device.details.get("flash_attention", True):
        reason = f"FlashAttention 2 needs an Ampere GPU or newer, and {device.name} is older"
        return Refusal("LF-TRAIN-006", reason, "leave it out: sdpa is used")
    if find_spec("flash_attn") is None:
        hint = "pip install flash-attn, or use sdpa"
        return Refusal("LF-PLUGIN-021", "the package flash-attn is not installed", hint)
    if autocast(config.training, plan) == "no" and base_format(config, plan) == "float32":
        hint = "set training.bf16: true (or fp16), or use sdpa"
        return Refusal("LF-TRAIN-032", "FlashAttention 2 computes in 16 bits only, and this run is in fp32", hint)
    return None


def attention(config: FineTunerConfig, plan: RunPlan) -> str | None:
    """The attention kernel to load the model with; None leaves it to what the architecture supports."""
    asked = attention_asked(config, plan)
    if unusable_kernel(asked, config, plan):
        asked = config.base_model.attn_implementation  # what the profile suggests, where a short form asked for more
        if unusable_kernel(asked, config, plan):
            # the kernel that stays finite in bf16 on any CUDA stack; elsewhere the common one
            asked = "eager" if plan.device.type == "cuda" and autocast(config.training, plan) == "bf16" else "sdpa"
    return None if asked == "auto" else asked


def unusable_liger(plan: RunPlan) -> Refusal | None:
    """Why the kernels of Liger cannot compute here; None if they can."""
    if plan.device.type != "cuda":
        reason = f"Liger's kernels are written for GPUs; there are none for {plan.device.type}"
        return Refusal("LF-TRAIN-120", reason, "leave it out")
    if find_spec("liger_kernel") is None:
        return Refusal("LF-PLUGIN-080", "the package liger-kernel is not installed", "pip install 'llamafarm[liger]'")
    return None


def no_offloading(plan: RunPlan) -> Refusal | None:
    """Why activations cannot be offloaded here; None if they can."""
    if plan.device.type == "cuda":
        return None
    reason = f"with {plan.device.type} activations are in main memory anyway"
    return Refusal("LF-TRAIN-121", reason, "leave it out; training.gradient_checkpointing saves memory")


def uncompilable(training: TrainingConfig, plan: RunPlan) -> Refusal | None:
    """Why torch.compile cannot build for this device; None if it can."""
    if training.torch_compile_backend != "inductor":
        return None
    if plan.device.type == "cuda" and find_spec("triton") is None:
        hint = "pip install triton, or leave torch_compile out"
        return Refusal("LF-TRAIN-034", "torch.compile needs the package triton", hint)
    if plan.device.type == "cpu" and cpp_compiler() is None:
        reason = "torch.compile needs a C++ compiler to build for the CPU, and there is none (CXX, g++, clang++)"
        return Refusal("LF-TRAIN-034", reason, "install g++, or leave torch_compile out")
    return None


def in_words(config: FineTunerConfig, plan: RunPlan, kernel: str, loaded: str) -> str:
    """What a run computes with, in one line, and which of the switches of sdpa attention have an effect.

    Args:
        config: The fine-tuner's configuration.
        plan: What was decided.
        kernel: The attention kernel that the model was loaded with.
        loaded: Format of the base's weights as they are.
    """
    training, device = config.training, plan.device.type
    parts = [f"dtype: {loaded}", f"trained weights: {trained_format(training)}"]
    parts += [f"autocast: {autocast(training, plan)}", f"attn_implementation: {kernel}"]
    elsewhere = "" if kernel == "sdpa" else f"no effect: it chooses among the kernels of sdpa, not of {kernel}"
    for name, on, exists in (
        ("disable_cudnn_sdpa", training.disable_cudnn_sdpa, device == "cuda"),
        ("disable_flash_sdpa", training.disable_flash_sdpa, device in ("cuda", "cpu")),
    ):
        idle = elsewhere or ("" if exists else f"no effect: there is no such kernel on {device}")
        if on or f"training.{name}" in plan.given:
            parts.append(f"{name}: {on}{f' ({idle})' if idle else ''}")
    return ", ".join(parts)
