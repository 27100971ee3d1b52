"""Write result files: whole or not at all, and never over an existing one unless told to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import NamedTemporaryFile

from llamafarm.errors import DiskError, UsageError


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Check before any work is done that `path` may be written.

    Raises:
        UsageError: If it exists and may not be replaced.
    """
    if path.exists() and not overwrite:
        hint = "give another name, or --overwrite"
        raise UsageError.of("LF-USAGE-005", f"{path} exists already", hint=hint)


def write_lines(path: Path, lines: Iterable[str], *, overwrite: bool) -> int:
    """Write lines to a new file under a temporary name, then rename it.

    Returns:
        How many lines were written.

    Raises:
        UsageError: If the file exists and may not be replaced.
        DiskError: If it cannot be written.
    """
    refuse_existing(path, overwrite=overwrite)
    temporary: Path | None = None
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8") as file:
            temporary = Path(file.name)
            for line in lines:
                file.write(f"{line}\n")
                count += 1
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise DiskError.of("LF-DISK-001", f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return count


def _umask() -> int:
    """The process's mask for new files, which temporary files do not follow."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
