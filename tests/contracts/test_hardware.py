from __future__ import annotations

from llamafarm.api import DeviceSpec
from llamafarm.testing.contracts import HardwareContract
from llamafarm_hardware.cpu import Cpu
from llamafarm_hardware.cuda import Cuda
from llamafarm_hardware.mps import Mps

GIB = 2**30
NEW = {"compute_capability": "9.0", "bf16": True, "tf32": True, "cuda": "12.8", "cudnn": "9.10"}


class TestCpu(HardwareContract):
    component = Cpu
    devices = (DeviceSpec("cpu", "a processor", memory_bytes=8 * GIB, details={"cores": 2, "bf16": False}),)


class TestCuda(HardwareContract):
    component = Cuda
    devices = (
        DeviceSpec("cuda", "an older card", memory_bytes=8 * GIB, details={"compute_capability": "7.5", "bf16": False}),
        DeviceSpec("cuda", "newer cards", count=8, memory_bytes=80 * GIB, details=NEW),
        DeviceSpec("cuda", "a new card on an old stack", memory_bytes=24 * GIB, details=NEW | {"cuda": "11.8"}),
    )


class TestMps(HardwareContract):
    component = Mps
    devices = (DeviceSpec("mps", "a laptop", memory_bytes=16 * GIB),)
