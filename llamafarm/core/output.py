"""The output folder: whose it is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from llamafarm.core.lock import LOCK, live_owner, owned
from llamafarm.core.record import OWN, is_run, manifest_of
from llamafarm.errors import RunDirectoryError

_BEFORE_THE_MANIFEST: Final = frozenset({LOCK, "strategy.yaml", "resolved.yaml", "config.json", "run.log"})
"""What a run writes before its manifest; see `Run._write_start`."""


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
    if manifest is None and is_stillborn(folder):
        if (owner := live_owner(folder)) is not None:
            raise owned(folder, owner)
        return
    if manifest is None and is_run(folder):
        raise RunDirectoryError.of(
            "LF-RUN-116",
            "the output folder holds a run whose manifest is lost or damaged",
            where=str(folder),
            hint=f"go on with `llamafarm train --resume {folder}`, or choose another with --output FOLDER",
        )
    if manifest is None:
        raise RunDirectoryError.of(
            "LF-RUN-002",
            "the output folder is not empty and holds no run of ours",
            where=str(folder),
            hint="choose another with --output FOLDER",
        )
    if (owner := live_owner(folder)) is not None:
        raise owned(folder, owner)
    if not overwrite:
        status = "killed" if manifest.get("status") == "running" else manifest.get("status")
        go_on = "" if status == "completed" else f"go on with `llamafarm train --resume {folder}`, "
        raise RunDirectoryError.of(
            "LF-RUN-004",
            f"the output folder holds the run {manifest.get('run_id')} ({status})",
            where=str(folder),
            hint=f"{go_on}add --overwrite to replace it, or choose another with --output FOLDER",
        )


def is_stillborn(folder: Path) -> bool:
    """Whether a folder holds only what a run that was killed before it wrote its manifest leaves: nothing of value."""
    own = folder / OWN
    return (
        own.is_dir()
        and [path.name for path in folder.iterdir()] == [OWN]
        and all(path.name in _BEFORE_THE_MANIFEST or path.suffix == ".part" for path in own.iterdir())
    )
