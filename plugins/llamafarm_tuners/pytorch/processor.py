"""What is known of the processor without torch, and what room copies of frozen matrices may take there."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Final

AMD: Final = "AuthenticAMD"
"""As the system names the maker of a processor."""

_CPU_INFO = Path("/proc/cpuinfo")
_ROOM, _MOST = 1 / 16, 2**30
"""Copies take no more than this share of memory, and no more bytes than that: a container may have little."""


@cache
def made_by_amd() -> bool:
    """Whether the processor is of the maker on whose processors oneDNN is faster than MKL."""
    return _CPU_INFO.is_file() and AMD in _CPU_INFO.read_text(encoding="utf-8", errors="replace")


def lets_go() -> bool:
    """Whether memory that shows a file's bytes can be given back while the file stays mapped."""
    return sys.platform == "linux"


def room_for_copies(memory: float) -> float:
    """Bytes that copies of frozen matrices may take of so much memory."""
    return min(_MOST, _ROOM * memory)
