"""Which kernels and compilers are installed, without importing any of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import MappingProxyType

PACKAGES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "flash_attn": ("flash-attn", "attn_implementation: flash_attention_2"),
        "triton": ("triton", "torch_compile on CUDA"),
        "liger_kernel": ("liger-kernel", "use_liger_kernel"),
    }
)
"""Module → the distribution that has it, and what needs it."""


def installed(module: str) -> str | None:
    """The version of a package of kernels; None if it is not there."""
    if find_spec(module) is None:
        return None
    try:
        return version(PACKAGES[module][0])
    except PackageNotFoundError:
        return "unknown"


def cpp_compiler() -> str | None:
    """The C++ compiler that torch.compile would build with for a CPU; None if there is none."""
    names = (os.environ.get("CXX", ""), "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)
