"""What a loss of power may leave, in the worst case: nothing that was not synced, neither content nor names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Event:
    """A change of the file system, in the order in which they were made."""

    number: int
    name: str
    inode: int
    path: str
    other: str

    @property
    def place(self) -> str:
        """The name that it made or removed."""
        return self.other or self.path


def read_events(log: Path) -> list[Event]:
    """The events of a log of the shim."""
    events = []
    for line in log.read_text(errors="replace").splitlines():
        number, name, inode, path, other = line.split("\t")
        events.append(Event(int(number), name, int(inode), path, other))
    return events


def lose_power(folder: Path, log: Path, graves: Path) -> None:
    """Take back what had not reached the disk.

    A file is emptied if it was written after it was synced last; a name is as it was before if the folder that holds
    it was not synced after the change. The folder of the run itself is taken to exist.
    """
    events = read_events(log)
    _empty_dirty(folder, events)
    later: list[Event] = []
    for index in range(len(events) - 1, -1, -1):
        event = events[index]
        if event.name not in ("open", "mkdir", "rename", "link", "unlink", "rmdir") or event.place == str(folder):
            continue
        if _is_synced(event, events[index + 1 :]):
            later.insert(0, event)
        else:
            _undo(event, later, graves, folder)


def _empty_dirty(folder: Path, events: Sequence[Event]) -> None:
    dirty: set[int] = set()
    for event in events:
        if event.name in ("write", "truncate"):
            dirty.add(event.inode)
        elif event.name == "fsync":
            dirty.discard(event.inode)
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_ino in dirty:
            os.truncate(path, 0)


def _is_synced(event: Event, after: Sequence[Event]) -> bool:
    """Whether a folder that holds the name was synced later, whatever it is called by then; a rename is one change."""
    holders = {str(Path(name).parent) for name in (event.place, event.path)}
    for other in after:
        if other.name == "fsync" and other.path in holders:
            return True
        if other.name == "rename":
            holders = {_renamed(holder, other) for holder in holders}
    return False


def _renamed(path: str, rename: Event) -> str:
    if path == rename.path or path.startswith(f"{rename.path}/"):
        return rename.other + path[len(rename.path) :]
    return path


def _undo(event: Event, later: Sequence[Event], graves: Path, folder: Path) -> None:
    """Take a change back, at the place where later changes that stay have taken it."""
    path, place = event.path, event.place
    for other in later:
        if other.name == "rename":
            path, place = _renamed(path, other), _renamed(place, other)
    target, grave = Path(place), graves / str(event.number)
    if not target.parent.is_dir():
        return
    if event.name == "open":
        return  # whether it made the file cannot be told; without its content it is empty, which is the worse case
    if event.name == "mkdir" and target.is_dir():
        shutil.rmtree(target)
    elif event.name == "rename" and target.exists():
        if Path(path).parent.is_dir():
            target.rename(path)
        if grave.exists():
            os.link(grave, target)
    elif event.name == "link" and target.is_file():
        target.unlink()
    elif event.name == "unlink" and grave.exists() and not target.exists():
        os.link(grave, target)
    elif event.name == "rmdir" and not target.exists():
        target.mkdir()
