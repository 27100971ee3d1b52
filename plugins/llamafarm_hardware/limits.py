"""What this process may use of the machine: cores and memory, as the kernel and a container allow."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def allowed_cores(root: Path = ROOT) -> int:
    """Cores by affinity and by the container's quota, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroups("cpu", root):
        quota, period = _cpu_quota(folder)
        if quota > 0 and period > 0:
            cores = min(cores, -(-quota // period))
    return max(cores, 1)


def allowed_memory(root: Path = ROOT) -> int:
    """Bytes of memory: the machine's, or less where a container or a limit on the address space says so."""
    amounts = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder in _cgroups("memory", root):
        amounts += [number for name in ("memory.max", "memory.limit_in_bytes") if (number := _number(folder / name))]
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        amounts.append(address_space)
    return min(amounts)


def _cgroups(controller: str, root: Path) -> Iterator[Path]:
    """The folders whose limits bind this process: its own group's and those above it, of version 2 or 1."""
    mounted = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = mounted / controllers if controllers else mounted
        if controllers and not top.is_dir():
            top = mounted / controller
        own = top / path.lstrip("/")
        yield own
        while own != top and top in own.parents:
            own = own.parent
            yield own


def _cpu_quota(folder: Path) -> tuple[int, int]:
    """Microseconds of all cores together in each period of so many microseconds; 0 without a limit."""
    words = " ".join(_lines(folder / "cpu.max")).split()
    if len(words) == 2 and words[0].isdigit():
        return int(words[0]), int(words[1])
    return _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")


def _number(path: Path) -> int:
    text = "".join(_lines(path))
    return int(text) if text.isdigit() else 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
