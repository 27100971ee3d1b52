"""Weights that stand in a mapped file, and that nobody reads while fused layers have copies of them."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from pathlib import Path

import torch

from llamafarm_tuners.pytorch.processor import lets_go

_MAPS = Path("/proc/self/maps")
_PAGE_OUT = 21
"""MADV_PAGEOUT of Linux 5.4 and later: what was changed is kept, the rest is read again from its file."""


def in_file(tensors: Sequence[torch.Tensor]) -> list[bool]:
    """Which of them show the bytes of a mapped file, so that they can be let go."""
    if not tensors or not lets_go() or not _MAPS.is_file():
        return [False] * len(tensors)
    lines = (line.split(maxsplit=5) for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines())
    places = [line[0].split("-") for line in lines if len(line) == 6 and line[5].startswith("/")]
    mapped = [(int(start, 16), int(end, 16)) for start, end in places]
    return [
        one.device.type == "cpu"
        and any(start <= one.data_ptr() and one.data_ptr() + one.nbytes <= end for start, end in mapped)
        for one in tensors
    ]


def let_go(tensors: Sequence[torch.Tensor]) -> None:
    """Give what stands in files back to the system; whoever reads it again gets the same."""
    for one, inside in zip(tensors, in_file(tensors), strict=True):
        start = -(-one.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (one.data_ptr() + one.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
        if inside and size > 0:  # an older kernel refuses, and all stays as it is
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _PAGE_OUT)
