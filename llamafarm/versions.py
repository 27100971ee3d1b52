"""Versions of what trains: the same in a run's manifest and in its checkpoints."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from llamafarm import __version__

_PACKAGES: Final = (
    "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "bitsandbytes", "numpy", "trl"
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of LlamaFarm, Python and the libraries that matter, from metadata; what is not installed is left out."""
    found = {"llamafarm": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
