"""`cuda`: NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from llamafarm.api import DeviceSpec, HardwareProfile, NoConfig, Probe, Suggestion
from llamafarm_hardware.nvidia import Gpu, find_gpus, visible
from llamafarm_hardware.torch_build import TorchBuild, torch_build

_OLDEST_DRIVER = MappingProxyType({"11": 450, "12": 525, "13": 580})
"""The driver that each major version of CUDA needs at least."""

_AMPERE = (8, 0)
_GENERATIONS = MappingProxyType(
    {
        (12, 0): "Blackwell",
        (10, 0): "Blackwell",
        (9, 0): "Hopper",
        (8, 9): "Ada",
        (8, 0): "Ampere",
        (7, 5): "Turing",
        (7, 0): "Volta",
        (6, 0): "Pascal",
        (5, 0): "Maxwell",
    }
)
"""From which compute capability on a GPU is of which generation, newest first."""
_GOOD_CUDA, _GOOD_CUDNN = (12, 4), (9, 1)


class Cuda(HardwareProfile[NoConfig]):
    """NVIDIA GPUs, by what the driver says and what torch was built for."""

    name = "cuda"
    priority = 30

    def probe(self) -> Probe:
        """Compare torch's build with the driver's GPUs."""
        torch = torch_build()
        if torch is None:
            return Probe(None, "torch is not installed")
        if not torch.cuda:
            return Probe(None, f"torch {torch.version} was built without CUDA")
        gpus, reason = find_gpus()
        if gpus:
            gpus, reason = visible(gpus)
        if not gpus:
            return Probe(None, reason)
        if too_old := _too_old(gpus[0].driver, torch.cuda):
            return Probe(None, too_old)
        return Probe(_device(gpus, torch), f"{len(gpus)} x {gpus[0].name}, torch {torch.version} for CUDA {torch.cuda}")

    def suggest(self, device: DeviceSpec) -> Sequence[Suggestion]:
        """bf16 where the GPU computes in it; the attention kernel that is known to stay finite with it."""
        capability = device.details.get("compute_capability") or "unknown"
        who = f"{device.name} (compute capability {capability})"
        if not device.details.get("bf16"):
            reason = f"{who} does not compute in bf16, and sdpa is sound in the other precisions"
            return [Suggestion("base_model.attn_implementation", "sdpa", reason)]
        attention, reason = _attention(str(device.details["cuda"]), str(device.details["cudnn"]))
        suggestions = [
            Suggestion("training.bf16", value=True, reason=f"{who} computes in bf16"),
            Suggestion("base_model.attn_implementation", attention, reason),
        ]
        if device.details.get("tf32"):
            reason = f"{who} has TensorFloat-32 for the products that autocast leaves in fp32"
            suggestions.append(Suggestion("training.tf32", value=True, reason=reason))
        return suggestions


def _device(gpus: Sequence[Gpu], torch: TorchBuild) -> DeviceSpec:
    """The GPUs as one kind of device: what the least of them can do."""
    capability = min(gpu.capability for gpu in gpus)
    known = capability > (0, 0)
    details = {
        "compute_capability": ".".join(map(str, capability)) if known else "",
        "generation": _generation(capability),
        "bf16": capability >= _AMPERE,
        "tf32": capability >= _AMPERE,
        "fp16": True,
        "flash_attention": capability >= _AMPERE,
        "driver": gpus[0].driver,
        "torch": torch.version,
        "cuda": torch.cuda,
        "cudnn": torch.cudnn,
        "names": [gpu.name for gpu in gpus],
    }
    return DeviceSpec("cuda", gpus[0].name, len(gpus), min(gpu.memory_bytes for gpu in gpus), details)


def _generation(capability: tuple[int, int]) -> str:
    """What NVIDIA calls GPUs of a compute capability; empty when unknown."""
    return next((name for least, name in _GENERATIONS.items() if capability >= least), "")


def _too_old(driver: str, cuda: str) -> str:
    oldest = _OLDEST_DRIVER.get(cuda.split(".", maxsplit=1)[0], 0)
    major = driver.split(".", maxsplit=1)[0]
    if major.isdigit() and int(major) < oldest:
        return f"driver {driver} is too old for torch's CUDA {cuda}: it needs {oldest} or newer"
    return ""


def _attention(cuda: str, cudnn: str) -> tuple[str, str]:
    if _version(cuda) >= _GOOD_CUDA and _version(cudnn) >= _GOOD_CUDNN:
        return "sdpa", f"CUDA {cuda} with cuDNN {cudnn}: a stack on which sdpa stays finite in bf16"
    stack = f"CUDA {cuda} with cuDNN {cudnn or 'unknown'}"
    return "eager", f"the stable choice in bf16: {stack} is not known good (CUDA 12.4 with cuDNN 9.1 or newer is)"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
