from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from llamafarm.api import DeviceSpec, NoConfig
from llamafarm_hardware.cpu import Cpu, cpu_facts
from llamafarm_hardware.limits import allowed_cores, allowed_memory

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_cpu_of_this_machine_is_always_there() -> None:
    profile = Cpu(NoConfig())
    device = profile.probe().device
    assert device is not None
    assert (device.type, device.count) == ("cpu", 1)
    assert 1 <= device.details["cores"] <= (os.cpu_count() or 1)
    assert 0 < device.memory_bytes <= MACHINE
    values = {suggestion.path: suggestion.value for suggestion in profile.suggest(device)}
    assert values.keys() == {
        "base_model.torch_dtype",
        "base_model.attn_implementation",
        "training.dataloader_pin_memory",
    }


@pytest.mark.parametrize(
    ("flags", "dtype", "words"),
    [
        ({}, "float32", "no instructions for bf16"),
        ({"avx512_bf16": True}, "auto", "AVX512-BF16 is here"),
        ({"amx_bf16": True, "avx512_bf16": True}, "auto", "AMX and AVX512-BF16 is here"),
    ],
)
def test_the_format_of_a_base_is_open_where_the_processor_computes_in_bf16(flags, dtype, words) -> None:
    found = {item.path: item for item in Cpu(NoConfig()).suggest(DeviceSpec("cpu", "a CPU", details=flags))}
    assert found["base_model.torch_dtype"].value == dtype
    assert words in found["base_model.torch_dtype"].reason
    assert found["base_model.attn_implementation"].value == "sdpa"
    assert found["training.dataloader_pin_memory"].value is False


def test_without_limits_the_machine_is_ours(tmp_path: Path) -> None:
    assert allowed_memory(tmp_path) == MACHINE
    assert allowed_cores(tmp_path) == len(os.sched_getaffinity(0))


def test_affinity_bounds_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 8})
    assert allowed_cores(tmp_path) == 3


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 6)])
def test_version_2_bounds_the_cores(quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    tree(tmp_path, {"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": quota})
    assert allowed_cores(tmp_path) == cores


def test_version_1_bounds_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    group = "sys/fs/cgroup/cpu,cpuacct/docker/abc/"
    files = {f"{group}cpu.cfs_quota_us": "300000\n", f"{group}cpu.cfs_period_us": "100000\n"}
    tree(tmp_path, {"proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n", **files})
    assert allowed_cores(tmp_path) == 3


def test_a_limit_of_a_group_above_binds_too(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "1048576\n"}
    tree(tmp_path, {"proc/self/cgroup": "0::/a/b\n", **files})
    assert allowed_memory(tmp_path) == 2**20


def test_a_container_sees_its_group_as_the_top(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/memory/memory.limit_in_bytes": "2097152\n"}
    tree(tmp_path, {"proc/self/cgroup": "9:memory:/docker/not-mounted-here\n", **files})
    assert allowed_memory(tmp_path) == 2**21


def test_the_address_space_bounds_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**22, resource.RLIM_INFINITY))
    assert allowed_memory(tmp_path) == 2**22


def test_instruction_sets_are_read(tmp_path: Path) -> None:
    flags = "fpu avx2 avx512f avx512_bf16 amx_tile amx_bf16"
    first = f"processor\t: 0\nmodel name\t: Some Processor\nflags\t\t: {flags}\n"
    tree(tmp_path, {"proc/cpuinfo": f"{first}\nprocessor\t: 1\nmodel name\t: Another\nflags\t\t: fpu\n"})
    facts = cpu_facts(tmp_path)
    assert facts["name"] == "Some Processor"
    assert all(facts[name] for name in ("avx2", "avx512", "avx512_bf16", "amx_bf16"))


def test_a_plain_processor_has_none_of_them(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/cpuinfo": "model name\t: Old\nflags\t\t: fpu sse2\n"})
    facts = cpu_facts(tmp_path)
    assert not any(facts[name] for name in ("avx2", "avx512", "avx512_bf16", "amx_bf16"))


def test_no_cpuinfo_is_no_crash(tmp_path: Path) -> None:
    assert cpu_facts(tmp_path)["name"]
