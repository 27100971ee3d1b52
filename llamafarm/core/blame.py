"""Whose code an unexpected error was raised in: LlamaFarm's, or that of a plugin of somebody else."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Final

from llamafarm.core.distributions import Plugin, announced
from llamafarm.errors import PluginError

_OWN: Final = "llamafarm"


def blamed(error: BaseException, hint: str = "") -> PluginError | None:
    """The error as one of the plugin in whose code it was raised; None if that is LlamaFarm's own.

    What a library raises counts as raised by whoever called the library. Which packages are plugins is told by
    metadata alone: this is asked when things have gone wrong already.
    """
    others = {
        one.entry_point.module.partition(".")[0]: one.plugin for one in announced() if one.plugin.distribution != _OWN
    }
    found: tuple[Plugin, str] | None = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in others:
            found = others[package], f"{Path(frame.f_code.co_filename)}:{line}"
        elif package == _OWN or package.startswith(f"{_OWN}_"):
            found = None
    if found is None:
        return None
    plugin, where = found
    what = f"{type(error).__name__}: {error}".partition("\n")[0]
    return PluginError.of("LF-PLUGIN-081", f"{plugin} failed: {what}", where=where, hint=hint)
