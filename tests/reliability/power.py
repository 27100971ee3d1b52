"""What a loss of power may leave: of what was not synced nothing, or some of it, neither content nor names in order.

What is taken for granted is what POSIX says of fsync, and no more: an fsync of a file brings its content to the disk,
but not its name; an fsync of a folder brings the names in it, those made, changed and removed. A rename is one change,
even between two folders. Changes of one folder reach the disk in their order, those of two folders in any. File systems
with a journal, such as ext4, xfs and btrfs, keep more: the order of all names.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MAKES: Final = frozenset({"create", "mkdir", "rename", "link"})
_NAMES: Final = _MAKES | {"unlink", "rmdir"}
_STOPS: Final = 0.15
"""How likely a folder's changes end before each change, where chance decides."""


@dataclass(frozen=True)
class Event:
    """A change of the file system, in the order in which they were made; `size` is that of the file afterwards."""

    number: int
    name: str
    inode: int
    size: int
    path: str
    other: str

    @property
    def place(self) -> str:
        """The name that it made or removed."""
        return self.other or self.path

    @property
    def holders(self) -> set[str]:
        """The folders whose names it changed."""
        return {str(Path(name).parent) for name in (self.place, self.path)}


def read_events(log: Path) -> list[Event]:
    """The events of a log of the shim."""
    events = []
    for line in log.read_text(errors="replace").splitlines():
        number, name, inode, size, path, other = line.split("\t")
        events.append(Event(int(number), name, int(inode), int(size), path, other))
    return events


def lose_power(folder: Path, log: Path, graves: Path, chance: random.Random | None = None) -> None:
    """Take back what had not reached the disk; the folder of the run itself is taken to exist.

    Args:
        folder: The run's folder, as it was when the power went.
        log: What was done to it.
        graves: Second names of files that were removed or replaced, by the number of the event.
        chance: Decides what of it had reached the disk all the same; None: nothing.
    """
    events = read_events(log)
    lost = _lost(events, folder, chance)
    later: list[Event] = []
    for event in reversed(events):
        if event.number in lost:
            _undo(event, later, graves)
        elif event.name in _NAMES:
            later.insert(0, event)
    _lose_content(folder, events, chance)


def _lost(events: Sequence[Event], folder: Path, chance: random.Random | None) -> set[int]:
    """Numbers of the changes of names that are lost: in each folder the last ones."""
    lost: set[int] = set()
    ended: set[str] = set()
    for index, event in enumerate(events):
        may_be = event.name in _NAMES and event.place != str(folder) and not _is_synced(event, events[index + 1 :])
        if may_be and (chance is None or event.holders & ended or chance.random() < _STOPS):
            lost.add(event.number)
            ended |= event.holders
        if event.name == "rename":
            ended = {_renamed(path, event) for path in ended}
    return lost


def _is_synced(event: Event, after: Sequence[Event]) -> bool:
    """Whether a folder that holds the name was synced later, wherever both have moved by then."""
    holders, place = event.holders, event.place
    for other in after:
        if other.name == "fsync" and (other.path in holders or (place and other.path == str(Path(place).parent))):
            return True
        if other.name == "rename":
            holders = {_renamed(holder, other) for holder in holders}
            place = _renamed(place, other) if event.name in _MAKES else ""
    return False


def _renamed(path: str, rename: Event) -> str:
    if path == rename.path or path.startswith(f"{rename.path}/"):
        return rename.other + path[len(rename.path) :]
    return path


def _undo(event: Event, later: Sequence[Event], graves: Path) -> None:
    """Take a change back, at the place where later changes that stay have taken it."""
    path, place = event.path, event.place
    for other in later:
        if other.name == "rename":
            path, place = _renamed(path, other), _renamed(place, other)
    target, grave = Path(place), graves / str(event.number)
    if not target.parent.is_dir():
        return
    if event.name == "mkdir" and target.is_dir():
        shutil.rmtree(target)
    elif event.name == "rename" and target.exists():
        if Path(path).parent.is_dir():
            target.rename(path)
        if grave.exists() and not target.exists():
            os.link(grave, target)
    elif event.name in ("create", "link") and target.is_file():
        target.unlink()
    elif event.name == "unlink" and grave.exists() and not target.exists():
        os.link(grave, target)
    elif event.name == "rmdir" and not target.exists():
        target.mkdir()


def _lose_content(folder: Path, events: Sequence[Event], chance: random.Random | None) -> None:
    """Take back what was written to files after they were synced last."""
    synced, dirty = _synced_sizes(events)
    for path in folder.rglob("*"):
        if not path.is_file() or path.is_symlink():
            continue
        found = path.stat()
        if found.st_ino not in dirty:
            continue
        dirty.discard(found.st_ino)  # another name of it is the same file
        kept = min(synced.get(found.st_ino, 0), found.st_size)
        how = "nothing" if chance is None else chance.choice(("nothing", "half", "zeros", "all"))
        if how != "all":
            os.truncate(path, kept + (found.st_size - kept) // 2 if how == "half" else kept)
        if how == "zeros":  # the size had been written, the blocks had not
            os.truncate(path, found.st_size)


def _synced_sizes(events: Sequence[Event]) -> tuple[Mapping[int, int], set[int]]:
    """By inode: how much of a file is on the disk for certain; and which files have more than that."""
    synced: dict[int, int] = {}
    dirty: set[int] = set()
    for event in events:
        if event.name == "create":  # the number may have been that of another file
            synced[event.inode] = 0
        elif event.name == "fsync":
            synced[event.inode] = event.size
            dirty.discard(event.inode)
        elif event.name in ("write", "truncate"):
            dirty.add(event.inode)
            if event.name == "truncate":
                synced[event.inode] = min(synced.get(event.inode, 0), event.size)
    return synced, dirty
