"""The compiled kernels beside this file: `kernels.so`, which the build of the wheel makes from the C that lies here."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llamafarm_tuners.pytorch.fast.native.digest import digest

FOLDER = Path(__file__).parent
LIBRARY = "kernels.so"
LEVELS = {3: "x86-64-v3", 4: "x86-64-v4", 5: "x86-64-v4 with AVX512_BF16", 8: "ARMv8"}
PAIRS = "v5"
"""The level at which pairs of bfloat16 are multiplied."""


@dataclass(frozen=True, slots=True)
class Library:
    """What was found.

    Attributes:
        loaded: The library; None if it cannot be used.
        level: Of instructions: the end of its functions' names.
        told: In words: for which processors it is, or why it is not used.
    """

    loaded: ctypes.CDLL | None
    level: str
    told: str


@cache
def library() -> Library:
    """The compiled kernels of this installation."""
    return load(FOLDER)


def load(folder: Path) -> Library:
    """The library in a folder with its sources. Needs no torch."""
    path = folder / LIBRARY
    if not path.is_file():
        return Library(None, "", "not built: no C compiler when LlamaFarm was installed")
    try:
        loaded = ctypes.CDLL(str(path))
        sources = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(loaded, "llamafarm_sources")))
        level = int(loaded.llamafarm_level())
    except (OSError, ValueError, AttributeError) as error:  # for another system, or cut short
        return Library(None, "", f"not used: {path} cannot be loaded ({error})")
    if sources.decode() != digest(folder):
        return Library(None, "", "not used: built from other sources; install LlamaFarm again")
    if level not in LEVELS:
        return Library(None, "", "not used: this processor has no AVX2")
    return Library(loaded, f"v{level}", f"built for {LEVELS[level]}")
