"""`mps`: GPUs of Apple silicon."""

from __future__ import annotations

import platform
from collections.abc import Sequence

from llamafarm.api import DeviceSpec, HardwareProfile, NoConfig, Probe, Suggestion
from llamafarm_hardware.limits import allowed_cores, allowed_memory
from llamafarm_hardware.torch_build import torch_build

_OLDEST_MACOS = (12, 3)
_BF16_MACOS = (14, 0)
"""Metal knows bf16 from here on."""


class Mps(HardwareProfile[NoConfig]):
    """The GPU of an Apple-silicon Mac; it shares the machine's memory."""

    name = "mps"
    priority = 20

    def probe(self) -> Probe:
        """Look at the platform: torch for arm64 macOS is always built with MPS."""
        system, machine = platform.system(), platform.machine()
        if (system, machine) != ("Darwin", "arm64"):
            return Probe(None, f"{system} on {machine} has no Apple GPU that torch uses (arm64 macOS only)")
        release = platform.mac_ver()[0]
        if _version(release) < _OLDEST_MACOS:
            return Probe(None, f"macOS {release} is too old for torch on MPS: it needs 12.3 or newer")
        torch = torch_build()
        if torch is None:
            return Probe(None, "torch is not installed")
        details = {
            "macos": release,
            "torch": torch.version,
            "cores": allowed_cores(),
            "bf16": _version(release) >= _BF16_MACOS,
            "tf32": False,
            "fp16": False,
            "flash_attention": False,
        }
        return Probe(DeviceSpec("mps", "Apple silicon", 1, allowed_memory(), details), f"macOS {release} on arm64")

    def suggest(self, device: DeviceSpec) -> Sequence[Suggestion]:
        """Full precision, and no pinned memory: it is one memory."""
        return [
            Suggestion("base_model.torch_dtype", "float32", f"full precision is the sound choice on {device.name}"),
            Suggestion("base_model.attn_implementation", "sdpa", "fused attention, sound in float32"),
            Suggestion("training.dataloader_pin_memory", value=False, reason="CPU and GPU share one memory on MPS"),
        ]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
