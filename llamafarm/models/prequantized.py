"""Bases that come quantized (GPTQ, AWQ …): which library they need, told from config.json before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llamafarm.api import BaseModelConfig
from llamafarm.errors import PluginError, Problem
from llamafarm.models.locate import Located

_NEEDS = {
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed_tensors",),
    "hqq": ("hqq",),
    "aqlm": ("aqlm",),
    "quanto": ("optimum.quanto",),
    "torchao": ("torchao",),
}
"""Format → modules that transformers loads it with."""


def stored_as(located: Located, config: BaseModelConfig | None = None) -> str:
    """The format that the model's weights are stored in; empty when they are plain, or not known yet (hub)."""
    quantized = described(located, config).get("quantization_config")
    return str(quantized.get("quant_method", "")) if isinstance(quantized, dict) else ""


def described(located: Located, config: BaseModelConfig | None = None) -> Mapping[str, Any]:
    """A model's `config.json`, as far as it is on this machine; empty if it is not, or cannot be read."""
    path = _config_file(located, config)
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # whoever loads it says what is wrong with the file
    return found if isinstance(found, dict) else {}


def library_problem(located: Located, config: BaseModelConfig | None = None, where: str = "") -> Problem | None:
    """What is missing to load the model, if it is stored in a format that needs a library of its own."""
    method = stored_as(located, config)
    missing = [module for module in _NEEDS.get(method, ()) if not _there(module)]
    if not missing:
        return None
    packages = " ".join(module.replace(".", "-").replace("_", "-") for module in missing)
    message = f"{located.given} is stored in the format {method}, which needs {' and '.join(missing)}"
    return Problem("LF-PLUGIN-050", message, where, f"pip install {packages}, or take the model as it was before")


def require_library(located: Located, config: BaseModelConfig | None = None) -> None:
    """Check that the model can be loaded.

    Raises:
        PluginError: If a library for its format is missing.
    """
    if problem := library_problem(located, config):
        raise PluginError([problem])


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _config_file(located: Located, config: BaseModelConfig | None) -> Path | None:
    if located.folder:
        return located.folder / "config.json"
    from huggingface_hub import try_to_load_from_cache

    options = config or BaseModelConfig()
    found = try_to_load_from_cache(
        located.given, "config.json", cache_dir=options.cache_dir, revision=options.revision or "main"
    )
    return Path(found) if isinstance(found, str) else None
