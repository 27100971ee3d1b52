"""Write result files: whole or not at all, and never over an existing one unless told to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from llamafarm.errors import DiskError, UsageError
from llamafarm.files import replacing


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Check before any work is done that `path` may be written.

    Raises:
        UsageError: If it exists and may not be replaced.
        DiskError: If nothing can be written there.
    """
    if path.exists() and not overwrite:
        hint = "give another name, or --overwrite"
        raise UsageError.of("LF-USAGE-005", f"{path} exists already", hint=hint)
    there = next((parent for parent in path.parents if parent.exists()), None)
    if there is not None and not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        reason = "may not be written into" if there.is_dir() else "is a file"
        raise DiskError.of("LF-DISK-001", f"cannot write {path}: {there} {reason}", hint="give another name")


def write_lines(path: Path, lines: Iterable[str], *, overwrite: bool) -> int:
    """Write lines to a new file under a temporary name, then rename it.

    Returns:
        How many lines were written.

    Raises:
        UsageError: If the file exists and may not be replaced.
        DiskError: If it cannot be written.
    """
    refuse_existing(path, overwrite=overwrite)
    count = 0
    try:
        with replacing(path) as (file,):
            for line in lines:
                file.write(f"{line}\n".encode())
                count += 1
    except OSError as error:
        raise DiskError.of("LF-DISK-001", f"cannot write {path}: {error.strerror or error}") from error
    return count
