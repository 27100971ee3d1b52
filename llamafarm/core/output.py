"""The output folder: whose it is, and writing into it so that a file is either whole or absent."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamafarm.errors import RunDirectoryError

OWN = "llamafarm"
"""The sub-folder that marks a run directory as ours."""


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """The manifest of a run directory, or None when it has none that can be read."""
    try:
        manifest = json.loads((folder / OWN / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def check_output_dir(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds somebody's work.

    Raises:
        RunDirectoryError: It is a file, holds a run (without `overwrite`) or a live one, or things that are not ours.
    """
    if folder.exists() and not folder.is_dir():
        raise RunDirectoryError.of("LF-RUN-001", "the output folder is a file", where=str(folder), hint="use --output")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    manifest = manifest_of(folder)
    if manifest is None:
        raise RunDirectoryError.of(
            "LF-RUN-002",
            "the output folder is not empty and holds no run of ours",
            where=str(folder),
            hint="choose another with --output FOLDER",
        )
    if is_alive(manifest):
        raise RunDirectoryError.of(
            "LF-RUN-003",
            f"a run is writing here (process {manifest['pid']})",
            where=str(folder),
            hint="wait, or use --output",
        )
    if not overwrite:
        raise RunDirectoryError.of(
            "LF-RUN-004",
            f"the output folder holds the run {manifest.get('run_id')} ({manifest.get('status')})",
            where=str(folder),
            hint="add --overwrite to replace it, or choose another with --output FOLDER",
        )


def is_alive(manifest: Mapping[str, Any]) -> bool:
    """Whether the process of a running manifest still exists on this machine."""
    if manifest.get("status") != "running" or manifest.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(manifest["pid"]), 0)
    except (KeyError, ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return int(manifest["pid"]) != os.getpid()
