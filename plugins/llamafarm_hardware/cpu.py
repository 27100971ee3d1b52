"""`cpu`: always there."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamafarm.api import DeviceSpec, HardwareProfile, NoConfig, Probe, Suggestion
from llamafarm_hardware.limits import ROOT, allowed_cores, allowed_memory


class Cpu(HardwareProfile[NoConfig]):
    """The processor, with the cores and the memory that this process may use."""

    name = "cpu"
    priority = 10

    def probe(self) -> Probe:
        """Read what the kernel tells about the processor and the limits."""
        facts = cpu_facts()
        cores, memory = allowed_cores(), allowed_memory()
        formats = {"bf16": True, "bf16_instructions": bool(_bf16_instructions(facts)), "tf32": False, "fp16": False}
        details = {"cores": cores, **formats, "flash_attention": False, **facts}
        name = str(details.pop("name"))
        return Probe(DeviceSpec("cpu", name, 1, memory, details), f"{cores} cores, {memory / 2**30:.1f} GiB of memory")

    def suggest(self, device: DeviceSpec) -> Sequence[Suggestion]:
        """A format for the frozen base; nothing to pin memory for."""
        dtype, reason = base_dtype(device.details)
        return [
            Suggestion("base_model.torch_dtype", dtype, f"{reason} ({device.name})"),
            Suggestion("base_model.attn_implementation", "sdpa", "fused attention, sound in float32"),
            Suggestion("training.dataloader_pin_memory", value=False, reason="there is no GPU to copy to"),
        ]


def base_dtype(details: Mapping[str, Any]) -> tuple[str, str]:
    """The format that suits the frozen base on a processor, and why: the one place where this is decided.

    Where the processor has instructions for products in bf16, the fine-tuner decides: it knows the model.
    """
    if instructions := _bf16_instructions(details):
        return "auto", f"{instructions} is here: bfloat16 for a frozen base where that is faster, else float32"
    return "float32", "full precision is sound on every CPU, and this one has no instructions for bf16"


def _bf16_instructions(facts: Mapping[str, Any]) -> str:
    """The instruction sets for products in bf16, in words."""
    named = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}
    return " and ".join(name for flag, name in named.items() if facts.get(flag))


def cpu_facts(root: Path = ROOT) -> Mapping[str, Any]:
    """The processor's name, and which of the instruction sets that matter for training it has."""
    facts = _cpuinfo(root)
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    return {
        "name": facts.get("model name") or platform.processor() or platform.machine(),
        "maker": facts.get("vendor_id", ""),
        "architecture": platform.machine(),
        "avx2": "avx2" in flags,
        "avx512": "avx512f" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "amx_bf16": "amx_bf16" in flags,
    }


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's lines."""
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
