"""The output folder: whose it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from llamafarm.core.lock import LOCK, live_owner, owned
from llamafarm.core.record import OWN, is_run, manifest_of
from llamafarm.errors import RunDirectoryError

_MEASURED: Final = "evaluation_results.json"
_LATER: Final = frozenset({OWN, "export", "training_loss.png", _MEASURED})
"""What commands make of a run, in its folder."""

BROUGHT: Final = "brought.json"
"""Names of what others had put into the run that was replaced."""

EXPORTED: Final = "export_report.json"
"""Marks a folder as an export."""

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


def require_outside(base: Path, folder: Path) -> None:
    """Refuse a base model that would be taken away with the run that is replaced.

    Raises:
        RunDirectoryError: If it is in the output folder.
    """
    if Path(os.path.realpath(base)).is_relative_to(os.path.realpath(folder)):
        message = f"the base model {base} is part of what --overwrite replaces"
        hint = "choose another folder with --output FOLDER"
        raise RunDirectoryError.of("LF-RUN-118", message, where=str(folder), hint=hint)


def strangers(folder: Path) -> list[Path]:
    """What others put into a run's folder: what came with it from the run before, and what it did not write.

    Of a run that was killed only the former is known. Exports, measures and pictures of the run belong to it: they say
    nothing of the one that replaces it.
    """
    written = (manifest_of(folder) or {}).get("files")
    brought = names_brought(folder)

    def foreign(path: Path) -> bool:
        if path.name in brought:
            return True
        answers = path.name == "answers.jsonl" and (folder / _MEASURED).is_file()  # which `evaluate` puts beside it
        later = path.name in _LATER or answers or (path / EXPORTED).is_file()
        return isinstance(written, list) and path.name not in written and not later

    return [path for path in sorted(folder.iterdir()) if foreign(path)]


def names_brought(folder: Path) -> frozenset[str]:
    """What others had put into the run that this one replaced."""
    try:
        found = json.loads((folder / OWN / BROUGHT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return frozenset()
    return frozenset(name for name in found if isinstance(name, str)) if isinstance(found, list) else frozenset()


def is_stillborn(folder: Path) -> bool:
    """Whether a folder holds only what a run that was killed before it wrote its manifest leaves: nothing of value."""
    own = folder / OWN
    return (
        own.is_dir()
        and [path.name for path in folder.iterdir()] == [OWN]
        and all(path.name in _BEFORE_THE_MANIFEST or path.suffix == ".part" for path in own.iterdir())
    )
