from __future__ import annotations

from llamafarm_hardware.cpu import CpuProfile
from llamafarm_hardware.cuda import CudaProfile
from llamafarm_hardware.mps import MpsProfile

from llamafarm.api import DeviceSpec
from llamafarm.testing.contracts import HardwareContract

GIB = 2**30
NEW = {"compute_capability": "9.0", "bf16": True, "tf32": True, "cuda": "12.8", "cudnn": "9.10"}


class TestCpu(HardwareContract):
    component = CpuProfile
    devices = (DeviceSpec("cpu", "a processor", memory_bytes=8 * GIB, details={"cores": 2, "bf16": False}),)


class TestCuda(HardwareContract):
    component = CudaProfile
    devices = (
        DeviceSpec("cuda", "an older card", memory_bytes=8 * GIB, details={"compute_capability": "7.5", "bf16": False}),
        DeviceSpec("cuda", "newer cards", count=8, memory_bytes=80 * GIB, details=NEW),
        DeviceSpec("cuda", "a new card on an old stack", memory_bytes=24 * GIB, details=NEW | {"cuda": "11.8"}),
    )


class TestMps(HardwareContract):
    component = MpsProfile
    devices = (DeviceSpec("mps", "a laptop", memory_bytes=16 * GIB),)
