"""The folder of an export: written beside its place and renamed into it, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llamafarm.errors import DiskError, UsageError
from llamafarm.export.report import REPORT_FILE
from llamafarm.files import free_name, system_errors


def check_place(output: Path, model: Path | None, *, overwrite: bool) -> None:
    """Refuse a place that holds something, before any work is done.

    Raises:
        UsageError: If it is a file, is the model itself, or holds what may not be replaced.
    """
    place, real = Path(os.path.realpath(output)), Path(os.path.realpath(model)) if model is not None else None
    if real == place:
        hint = f"use --output {output}/merged or another folder"
        raise UsageError.of("LF-USAGE-022", f"{output} is the model itself", hint=hint)
    if real is not None and real.is_relative_to(place):
        message = f"{output} holds the model itself, which would go with what is replaced"
        raise UsageError.of("LF-USAGE-022", message, hint="give another folder")
    if output.exists() and not output.is_dir():
        raise UsageError.of("LF-USAGE-021", f"{output} is a file", hint="give the name of a folder")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not (output / REPORT_FILE).is_file():
        message = f"{output} is not empty and holds no export of ours"
        raise UsageError.of("LF-USAGE-021", message, hint="give another folder: this one is never replaced")
    if not overwrite:
        hint = "give another folder, or --overwrite"
        raise UsageError.of("LF-USAGE-021", f"{output} holds an export already", hint=hint)


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `output` at the end, or goes away on failure.

    Raises:
        DiskError: If it cannot be written.
    """
    temporary: Path | None = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".exporting-", dir=output.parent))
        temporary.chmod(0o755)
        with system_errors():
            yield temporary
        _tell_files(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(0o644)  # the library of safetensors leaves it to the owner alone
                _sync(file)
        with tempfile.TemporaryDirectory(prefix=".old-", dir=output.parent) as old:
            if output.exists():
                output.rename(Path(old) / output.name)
            temporary.rename(output)
            _keep_others(Path(old) / output.name, output)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiskError.of("LF-DISK-001", f"cannot write {output}: {reason}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _tell_files(folder: Path) -> None:
    """Say in the report what the export is made of: whatever else is there later is somebody else's."""
    if (report := _report(folder)) is not None:
        report["files"] = sorted(path.name for path in folder.iterdir())
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _keep_others(before: Path, output: Path) -> None:
    """What others put into the export that was replaced moves to the one that replaces it."""
    written = (_report(before) or {}).get("files")
    if not isinstance(written, list):
        return  # nobody knows what it wrote
    for path in before.iterdir():
        if path.name not in written:
            path.rename(output / free_name(output, path.name))


def _report(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
