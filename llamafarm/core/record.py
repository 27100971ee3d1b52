"""What a run directory says about its run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from llamafarm.errors import DiskError
from llamafarm.models.checkpoint import CHECKPOINT_FILE

OWN: Final = "llamafarm"
"""The sub-folder that marks a run directory as ours."""


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """The manifest of a run directory, or None when it has none that can be read."""
    return _json(folder / OWN / "manifest.json")


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run of ours, though its manifest be damaged or lost: it has checkpoints then.

    Raises:
        DiskError: If it is a run of somebody else, who alone may look.
    """
    own = folder / OWN
    if own.is_dir() and not os.access(own, os.R_OK | os.X_OK):
        hint = "be the user who made the run, or let that user change the mode of the folder"
        raise DiskError.of("LF-DISK-031", "the run's record is not for this user", where=str(own), hint=hint)
    kept = (folder / OWN / "resolved.yaml").is_file() and any(folder.glob(f"checkpoint-*/{CHECKPOINT_FILE}"))
    return kept or manifest_of(folder) is not None


def settings_of(folder: Path) -> dict[str, Any] | None:
    """Every setting of the run, flat; None when there is no record of them."""
    return _json(folder / OWN / "config.json")


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
