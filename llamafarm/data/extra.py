"""Optional libraries that read some kinds of sources."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from llamafarm.errors import PluginError


def require(module: str, source: str | Path) -> Any:
    """Import a library of the extra `data`.

    Args:
        module: What to import.
        source: What it shall read, for the message.

    Raises:
        PluginError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        library = module.partition(".")[0]
        hint = 'pip install "llamafarm[data]"'
        message = f"reading it needs {library}, which is not installed"
        raise PluginError.of("LF-PLUGIN-040", message, where=str(source), hint=hint) from None
