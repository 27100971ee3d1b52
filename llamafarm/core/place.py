"""Where a run writes: a folder made for it, or one that it comes back to."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from llamafarm.core.lock import OwnerLock, alone_in, live_owner
from llamafarm.core.output import BROUGHT, check_output_dir, is_stillborn, names_brought, strangers
from llamafarm.core.record import OWN
from llamafarm.errors import DiskError
from llamafarm.files import free_name, sync_folder, write_atomically


class NewPlace:
    """Makes the output folder; unless `keep` is set in the end, takes it away and puts back what was there before."""

    def __init__(self, folder: Path, run_id: str, *, overwrite: bool) -> None:
        self.given, self.run_id, self.overwrite, self.keep = folder, run_id, overwrite, False
        self.folder = Path(os.path.realpath(folder))  # a link stays where it is: what it leads to is made and moved
        self.before = _set_aside(self.folder)
        self.made: list[Path] = []
        self._held = ExitStack()

    def __enter__(self) -> Self:
        try:
            self.made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with alone_in(self.folder.parent):
                self._take()
        except OSError as error:
            raise DiskError.of(
                "LF-DISK-001",
                f"cannot make the output folder: {error.strerror}",
                where=str(self.given),
                hint=_in_the_way(self.folder),
            ) from None
        return self

    def _take(self) -> None:
        self._put_back()
        check_output_dir(self.given, overwrite=self.overwrite)
        if self.folder.is_dir() and is_stillborn(self.folder):
            shutil.rmtree(self.folder)
        if self.folder.is_dir() and any(self.folder.iterdir()):
            self.folder.replace(self.before)
        self.folder.mkdir(exist_ok=True)
        (self.folder / OWN).mkdir(mode=0o700)  # rows, paths and settings are nobody else's business
        self._held.enter_context(OwnerLock(self.folder, self.run_id))

    def __exit__(self, *_: object) -> None:
        self._held.close()
        if self.keep:
            _take_away(self.before, self.folder)
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # another run may be in one of them by now
            for parent in self.made[1:]:
                parent.rmdir()
        if self.before.exists():
            self.before.replace(self.folder)

    def _put_back(self) -> None:
        """A run that was killed while it replaced another left that one aside; one that lives may still need it."""
        if not self.before.is_dir() or live_owner(self.folder) is not None:
            return
        if self.folder.is_dir() and is_stillborn(self.folder):
            shutil.rmtree(self.folder)
        if self.folder.is_dir() and any(self.folder.iterdir()):
            _take_away(self.before, self.folder)
        else:
            self.before.replace(self.folder)


class OldPlace:
    """Comes back to the folder of a run; whatever happens, it stays."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.keep = True
        self._lock = OwnerLock(folder, run_id)
        self._folder = folder

    def __enter__(self) -> Self:
        try:
            self._lock.__enter__()
            for part in (self._folder / OWN).glob(".*.part"):  # of a process that was killed while it wrote
                part.unlink()
        except OSError as error:
            raise DiskError.of(
                "LF-DISK-022", f"cannot write into the run's folder: {error.strerror}", where=str(self._folder)
            ) from None
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.__exit__(*exception)
        if exception == (None, None, None):  # it has replaced what it was to replace when it began
            folder = Path(os.path.realpath(self._folder))
            _take_away(_set_aside(folder), folder)


def _set_aside(folder: Path) -> Path:
    """Where a run that is to be replaced is until the one that replaces it is worth more."""
    return folder.with_name(f".{folder.name}.before")


def _take_away(before: Path, folder: Path) -> None:
    """Remove a run that was replaced; what others had put beside it moves to the one that replaces it."""
    if not before.is_dir():
        return
    moving = {path: free_name(folder, path.name) for path in strangers(before)}
    if moving:  # told first: whoever replaces this run, killed or not, has to know
        names = sorted(names_brought(folder).union(moving.values()))
        write_atomically(folder / OWN / BROUGHT, json.dumps(names) + "\n")
    for path, name in moving.items():
        path.replace(folder / name)
    sync_folder(folder)  # it is there before it is gone from where it was
    shutil.rmtree(before, ignore_errors=True)


def _in_the_way(folder: Path) -> str:
    """What to do about a folder that cannot be made."""
    there = next((path for path in folder.parents if path.exists()), None)
    reason = f"{there} is a file; " if there is not None and not there.is_dir() else ""
    return f"{reason}choose another with --output FOLDER"
