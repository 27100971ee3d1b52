from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from llamafarm.api import NoConfig, Probe
from llamafarm_hardware import cuda as cuda_module
from llamafarm_hardware.cuda import Cuda
from llamafarm_hardware.nvidia import find_gpus
from llamafarm_hardware.torch_build import TorchBuild

A100 = "0, GPU-aaaa-1, NVIDIA A100-SXM4-80GB, 81920, 8.0, 550.54.15"
T4 = "1, GPU-bbbb-2, Tesla T4, 15360, 7.5, 550.54.15"
GOOD = TorchBuild("2.13.0", "12.6", "9.10.2.21")


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a program of our own in the place of nvidia-smi."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def write(*lines: str, code: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        answer = "\n".join(lines)
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\nexit {code}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return write


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    def build(found: TorchBuild | None) -> None:
        monkeypatch.setattr(cuda_module, "torch_build", lambda: found)

    build(GOOD)
    return build


def probe() -> Probe:
    return Cuda(NoConfig()).probe()


def suggestions() -> dict[str, Any]:
    device = probe().device
    assert device is not None
    found = Cuda(NoConfig()).suggest(device)
    assert all(suggestion.reason for suggestion in found)
    return {suggestion.path: suggestion.value for suggestion in found}


def test_an_a100_is_found_without_torch(smi: Any, torch: Any) -> None:
    smi(A100)
    device = probe().device
    assert device is not None
    assert (device.type, device.name, device.count) == ("cuda", "NVIDIA A100-SXM4-80GB", 1)
    assert device.memory_bytes == 80 * 2**30
    assert device.details["compute_capability"] == "8.0"
    assert device.details["bf16"] is device.details["tf32"] is True
    assert device.details["driver"] == "550.54.15"


def test_unlike_gpus_count_as_the_least_of_them(smi: Any, torch: Any) -> None:
    smi(A100, T4)
    device = probe().device
    assert device is not None
    assert (device.count, device.memory_bytes) == (2, 15 * 2**30)
    assert device.details["compute_capability"] == "7.5"
    assert device.details["bf16"] is False
    assert device.details["names"] == ["NVIDIA A100-SXM4-80GB", "Tesla T4"]


@pytest.mark.parametrize(
    ("cuda", "cudnn", "attention"),
    [
        ("12.6", "9.10.2.21", "sdpa"),
        ("12.4", "9.1.0.70", "sdpa"),
        ("13.0", "9.13.0", "sdpa"),
        ("12.4", "8.9.7", "eager"),
        ("12.1", "9.10.2", "eager"),
        ("12.6", "", "eager"),
        ("11.8", "9.1", "eager"),
    ],
)
def test_attention_follows_the_stack_in_bf16(cuda: str, cudnn: str, attention: str, smi: Any, torch: Any) -> None:
    torch(TorchBuild("2.13.0", cuda, cudnn))
    smi(A100.replace("550.54.15", "580.65.06"))
    assert suggestions() == {
        "training.bf16": True,
        "training.tf32": True,
        "base_model.attn_implementation": attention,
    }


@pytest.mark.parametrize("capability", ["7.0", "7.5", "[N/A]"])
def test_no_bf16_before_ampere_or_where_it_is_unknown(capability: str, smi: Any, torch: Any) -> None:
    smi(A100.replace("8.0", capability))
    assert suggestions() == {"base_model.attn_implementation": "sdpa"}


@pytest.mark.parametrize("capability", ["8.0", "8.6", "8.9", "9.0", "10.0", "12.0"])
def test_bf16_from_ampere_on(capability: str, smi: Any, torch: Any) -> None:
    smi(A100.replace("8.0,", f"{capability},"))
    assert suggestions()["training.bf16"] is True


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("0", ["NVIDIA A100-SXM4-80GB"]),
        ("1", ["Tesla T4"]),
        ("1,0", ["Tesla T4", "NVIDIA A100-SXM4-80GB"]),
        (" 1 ", ["Tesla T4"]),
        ("GPU-bbbb", ["Tesla T4"]),
        ("1,7,0", ["Tesla T4"]),
        ("MIG-41b3", ["NVIDIA A100-SXM4-80GB"]),
    ],
)
def test_cuda_visible_devices_chooses(
    wanted: str, names: list[str], smi: Any, torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(A100, T4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    device = probe().device
    assert device is not None
    assert device.details["names"] == names


@pytest.mark.parametrize("wanted", ["", "-1", "7", "GPU-", "none"])
def test_cuda_visible_devices_can_hide_all(wanted: str, smi: Any, torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(A100, T4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    assert probe() == Probe(None, f"CUDA_VISIBLE_DEVICES={wanted!r} leaves none of 2 GPUs visible")


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (None, "torch is not installed"),
        (TorchBuild("2.13.0+cpu", "", ""), "torch 2.13.0+cpu was built without CUDA"),
        (TorchBuild("2.13.0", "13.0", ""), "driver 550.54.15 is too old for torch's CUDA 13.0: it needs 580 or newer"),
    ],
)
def test_a_torch_that_cannot_use_the_gpu_is_the_reason(
    build: TorchBuild | None, reason: str, smi: Any, torch: Any
) -> None:
    smi(A100)
    torch(build)
    assert probe() == Probe(None, reason)


def test_a_failing_driver_is_the_reason(smi: Any, torch: Any) -> None:
    smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", code=9)
    assert probe().reason.startswith("nvidia-smi failed: NVIDIA-SMI has failed because")


def test_no_driver_is_the_reason(tmp_path: Path, torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpus(tmp_path) == ([], "no NVIDIA driver found (no nvidia-smi, nothing in /proc/driver/nvidia)")


def test_a_silent_driver_lists_none(smi: Any, torch: Any) -> None:
    smi("")
    assert probe() == Probe(None, "nvidia-smi lists no GPU")


def test_the_kernel_module_tells_names_where_there_is_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 120\nGPU UUID: \t GPU-77aa\n")
    gpus, reason = find_gpus(tmp_path)
    assert not reason
    assert [(gpu.name, gpu.uuid, gpu.memory_bytes, gpu.capability) for gpu in gpus] == [
        ("NVIDIA H200", "GPU-77aa", 0, (0, 0))
    ]
