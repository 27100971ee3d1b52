"""GPUs by name, with the figures of their makers' data sheets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llamafarm.api import DeviceSpec
from llamafarm.errors import HardwareError, nearest

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Gpu:
    """A product.

    Attributes:
        name: The maker's name.
        gib: Memory in GiB.
        teraflops: Peak of dense products in bfloat16 (float16 where there is no bfloat16), sums in float32, in 10^12
            operations a second.
        bandwidth: Of its memory, in 10^9 bytes a second.
        capability: CUDA's compute capability.
    """

    name: str
    gib: float
    teraflops: float
    bandwidth: float
    capability: tuple[int, int]

    @property
    def device(self) -> DeviceSpec:
        """As the profile `cuda` would describe it, with a software stack of today."""
        ampere = self.capability >= (8, 0)
        details = {
            "compute_capability": ".".join(map(str, self.capability)),
            "bf16": ampere,
            "tf32": ampere,
            "fp16": True,
            "flash_attention": ampere,
            "cuda": "12.8",
            "cudnn": "9.8",
            "names": [self.name],
        }
        return DeviceSpec("cuda", self.name, 1, int(self.gib * _GIB), details)


GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        "b200": Gpu("NVIDIA B200", 179, 2250, 8000, (10, 0)),
        "h200": Gpu("NVIDIA H200", 140.4, 989, 4800, (9, 0)),
        "h100-80g": Gpu("NVIDIA H100 80GB HBM3", 79.6, 989, 3350, (9, 0)),
        "h100-pcie": Gpu("NVIDIA H100 PCIe", 79.6, 756, 2000, (9, 0)),
        "a100-80g": Gpu("NVIDIA A100-SXM4-80GB", 80, 312, 2039, (8, 0)),
        "a100-40g": Gpu("NVIDIA A100-SXM4-40GB", 40, 312, 1555, (8, 0)),
        "l40s": Gpu("NVIDIA L40S", 45, 362, 864, (8, 9)),
        "l4": Gpu("NVIDIA L4", 22.5, 121, 300, (8, 9)),
        "a40": Gpu("NVIDIA A40", 45, 149.7, 696, (8, 6)),
        "a10": Gpu("NVIDIA A10", 22.5, 125, 600, (8, 6)),
        "rtx-6000-ada": Gpu("NVIDIA RTX 6000 Ada Generation", 48, 364, 960, (8, 9)),
        "rtx-a6000": Gpu("NVIDIA RTX A6000", 48, 154.8, 768, (8, 6)),
        "rtx-5090": Gpu("NVIDIA GeForce RTX 5090", 31.8, 209.5, 1792, (12, 0)),
        "rtx-4090": Gpu("NVIDIA GeForce RTX 4090", 24, 165.2, 1008, (8, 9)),
        "rtx-4080": Gpu("NVIDIA GeForce RTX 4080", 16, 97.5, 717, (8, 9)),
        "rtx-3090": Gpu("NVIDIA GeForce RTX 3090", 24, 71, 936, (8, 6)),
        "v100-32g": Gpu("Tesla V100-SXM2-32GB", 32, 125, 900, (7, 0)),
        "v100-16g": Gpu("Tesla V100-SXM2-16GB", 16, 125, 900, (7, 0)),
        "t4": Gpu("Tesla T4", 15, 65, 320, (7, 5)),
    }
)
"""Short name → product. Memory is what the driver reports, with error correction on where that is the default."""


def gpu(name: str) -> Gpu:
    """A GPU by its short name; case, spaces and underscores do not matter.

    Raises:
        HardwareError: If there is none of that name.
    """
    plain = name.strip().lower().replace(" ", "-").replace("_", "-")
    if plain in GPUS:
        return GPUS[plain]
    near = [key for key in GPUS if key.startswith(f"{plain}-")] or [nearest(plain, GPUS)]
    hint = f"did you mean {' or '.join(near)}?" if near[0] in GPUS else near[0]
    message = f"no GPU {name!r} is known here; known are {', '.join(GPUS)}"
    raise HardwareError.of("LF-HARDWARE-040", message, where="--gpu", hint=hint)


def of_device(device: DeviceSpec) -> Gpu | None:
    """The product that a probed device is, if it is known."""
    return next((found for found in GPUS.values() if found.name == device.name), None)
