"""Asks the NVIDIA driver what is there, without a CUDA context: that would break processes forked later."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
_FIELDS = "index,uuid,name,memory.total,compute_cap,driver_version"
_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as the driver reports it.

    Attributes:
        index: The driver's number, as text.
        uuid: `GPU-…`.
        name: The product's name.
        memory_bytes: All of its memory; 0 when unknown.
        capability: Compute capability; (0, 0) when unknown.
        driver: The driver's version; empty when unknown.
    """

    index: str
    uuid: str
    name: str
    memory_bytes: int
    capability: tuple[int, int]
    driver: str


def find_gpus(root: Path = ROOT) -> tuple[list[Gpu], str]:
    """All GPUs of the machine, or none and the reason."""
    program = shutil.which("nvidia-smi")
    if program is None:
        gpus = _from_kernel(root)
        return gpus, "" if gpus else "no NVIDIA driver found (no nvidia-smi, nothing in /proc/driver/nvidia)"
    command = [program, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return [], f"nvidia-smi did not answer within {_SECONDS} s"
    except OSError as error:
        return [], f"nvidia-smi cannot be run: {error.strerror}"
    if answer.returncode:
        said = (answer.stdout + answer.stderr).strip().splitlines()
        return [], f"nvidia-smi failed: {said[0] if said else f'exit code {answer.returncode}'}"
    gpus = [_parse(line) for line in answer.stdout.splitlines() if line.strip()]
    return gpus, "" if gpus else "nvidia-smi lists no GPU"


def visible(gpus: Sequence[Gpu]) -> tuple[list[Gpu], str]:
    """The GPUs that `CUDA_VISIBLE_DEVICES` leaves, in its order, or none and the reason.

    As CUDA does, the list is read up to the first entry that names no GPU.
    """
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return list(gpus), ""
    chosen: list[Gpu] = []
    for entry in map(str.strip, wanted.split(",")):
        named = next((gpu for gpu in gpus if _names(entry, gpu)), None)
        if named is None:
            break
        chosen.append(named)
    return chosen, "" if chosen else f"CUDA_VISIBLE_DEVICES={wanted!r} leaves none of {len(gpus)} GPUs visible"


def _names(entry: str, gpu: Gpu) -> bool:
    if entry.startswith("MIG-"):  # a slice of a GPU: which one's is not told, all slices of a machine are alike
        return True
    return entry == gpu.index or (len(entry) > len("GPU-") and gpu.uuid.startswith(entry))


def _parse(line: str) -> Gpu:
    index, uuid, name, memory, capability, driver = (part.strip() for part in line.split(","))
    major, _, minor = capability.partition(".")
    known = (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)
    return Gpu(index, uuid, name, int(memory) * 2**20 if memory.isdigit() else 0, known, driver)


def _from_kernel(root: Path) -> list[Gpu]:
    """What the kernel module tells where its tools are not installed: names alone."""
    gpus: list[Gpu] = []
    for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        lines = (line.partition(":") for line in path.read_text(encoding="utf-8").splitlines())
        facts = {name.strip(): value.strip() for name, _, value in lines}
        gpus.append(Gpu(str(len(gpus)), facts.get("GPU UUID", ""), facts.get("Model", "NVIDIA GPU"), 0, (0, 0), ""))
    return gpus
