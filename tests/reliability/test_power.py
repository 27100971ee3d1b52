"""The model of a loss of power that the kill matrix uses, on changes that are made by hand."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest


class Disk:
    """Does things to a folder and writes them down as the shim does."""

    def __init__(self, root: Path) -> None:
        self.run, self.graves, self._log = root / "run", root / "graves", root / "log"
        for folder in (self.run, self.graves):
            folder.mkdir(parents=True)
        self._lines: list[str] = []

    def _note(self, name: str, path: Path, other: Path | None = None) -> None:
        at = other or path
        found = at.lstat() if at.exists() else None
        inode, size = (found.st_ino, found.st_size) if found else (0, 0)
        number = len(self._lines) + 1
        self._lines.append(f"{number}\t{name}\t{inode}\t{size}\t{path}\t{other or ''}")

    def _bury(self, path: Path) -> None:
        if path.is_file():
            os.link(path, self.graves / str(len(self._lines) + 1))

    def write(self, name: str, text: str, *, sync: bool = False) -> None:
        path = self.run / name
        if not path.exists():
            path.touch()
            self._note("create", path)
        with path.open("a") as file:
            file.write(text)
        self._note("write", path)
        if sync:
            self._note("fsync", path)

    def mkdir(self, name: str) -> None:
        (self.run / name).mkdir()
        self._note("mkdir", self.run / name)

    def sync(self, name: str = ".") -> None:
        self._note("fsync", self.run if name == "." else self.run / name)

    def rename(self, old: str, new: str) -> None:
        self._bury(self.run / new)
        (self.run / old).rename(self.run / new)
        self._note("rename", self.run / old, self.run / new)

    def unlink(self, name: str) -> None:
        self._bury(self.run / name)
        (self.run / name).unlink()
        self._note("unlink", self.run / name)

    def after(self, chance: random.Random | None = None) -> dict[str, str]:
        """What is there when the power comes back."""
        from power import lose_power

        self._log.write_text("".join(f"{line}\n" for line in self._lines))
        lose_power(self.run, self._log, self.graves, chance)
        return {str(path.relative_to(self.run)): path.read_text() for path in self.run.rglob("*") if path.is_file()}


@pytest.fixture
def make_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Disk]:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    numbers = count()
    return lambda: Disk(tmp_path / str(next(numbers)))


@pytest.fixture
def disk(make_disk: Callable[[], Disk]) -> Disk:
    return make_disk()


def test_content_and_names_are_lost_apart(disk):
    disk.write("whole", "text", sync=True)
    disk.write("empty", "text")
    disk.write("log", "synced", sync=True)
    disk.sync()
    disk.write("log", " and not")
    disk.write("nameless", "text", sync=True)
    assert disk.after() == {"whole": "text", "empty": "", "log": "synced"}


def test_a_folder_that_was_not_synced_before_its_rename_may_come_without_its_files(disk):
    for name, sync in (("careless", False), ("careful", True)):
        disk.mkdir(f".{name}")
        disk.write(f".{name}/file", "text", sync=True)
        if sync:
            disk.sync(f".{name}")
        disk.rename(f".{name}", name)
    disk.sync()
    assert disk.after() == {"careful/file": "text"}
    assert (disk.run / "careless").is_dir()


def test_a_rename_is_one_change_that_either_folder_brings_to_the_disk(disk):
    disk.write("target", "before", sync=True)
    disk.mkdir("stage")
    disk.write("stage/target", "after", sync=True)
    disk.sync("stage")
    disk.sync()
    disk.rename("stage/target", "target")
    disk.sync()
    assert disk.after() == {"target": "after"}


def test_what_was_replaced_or_removed_without_a_sync_is_back(disk):
    for name in ("replaced", "removed"):
        disk.write(name, "before", sync=True)
    disk.sync()
    disk.write(".part", "after", sync=True)
    disk.rename(".part", "replaced")
    disk.unlink("removed")
    assert disk.after() == {"replaced": "before", "removed": "before"}


def test_by_chance_a_folders_changes_end_somewhere_and_another_folders_elsewhere(make_disk):
    apart = set()
    for seed in range(40):
        disk = make_disk()
        for folder in ("a", "b"):
            disk.mkdir(folder)
        disk.sync()
        for number in range(4):
            for folder in ("a", "b"):
                disk.write(f"{folder}/{number}", "text", sync=True)
        disk.rename("a/0", "a/9")
        found = disk.after(random.Random(seed))
        assert set(found.values()) <= {"text"}, "content was synced"
        names = {folder: sorted(name[2:] for name in found if name.startswith(folder)) for folder in ("a", "b")}
        for some in names.values():
            assert some in (["1", "2", "3", "9"], [*"0123"][: len(some)]), "the first changes, not any"
        apart.add(len(names["a"]) - len(names["b"]))
    assert {-1, 0, 1} < apart


def test_by_chance_the_end_of_a_file_is_lost_cut_or_zeros(make_disk):
    found = set()
    for seed in range(30):
        disk = make_disk()
        disk.write("log", "synced", sync=True)
        disk.sync()
        disk.write("log", " then")
        found.add(disk.after(random.Random(seed))["log"])
    assert found == {"synced", "synced t", "synced then", "synced" + "\0" * 5}
