from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier

import pytest

from llamafarm.core.place import NewPlace, OldPlace
from llamafarm.errors import DiskError, RunDirectoryError


def write_run(folder: Path, run_id: str) -> None:
    (folder / "llamafarm").mkdir(parents=True, exist_ok=True)
    (folder / "llamafarm" / "manifest.json").write_text(json.dumps({"run_id": run_id, "status": "completed"}))


def owner(folder: Path) -> str:
    return str(json.loads((folder / "llamafarm" / "manifest.json").read_text())["run_id"])


@pytest.mark.parametrize("there", ["nothing", "a stillborn run", "a run"])
def test_of_many_that_want_a_folder_at_once_one_gets_it(tmp_path, there):
    for race in range(40):
        folder = tmp_path / "deep" / f"run-{race}"
        if there == "a stillborn run":
            (folder / "llamafarm").mkdir(parents=True)
            (folder / "llamafarm" / "run.lock").touch()
        elif there == "a run":
            write_run(folder, "old")
        start, done = Barrier(4, timeout=20), Barrier(4, timeout=20)

        def enter(number: int, folder: Path = folder, start: Barrier = start, done: Barrier = done) -> str:
            place = NewPlace(folder, f"run-{number}", overwrite=True)
            start.wait()
            try:
                with place:
                    done.wait()  # until all others have tried
                    return str(number)
            except RunDirectoryError as error:
                done.wait()
                return error.problems[0].id

        with ThreadPoolExecutor(4) as pool:
            found = sorted(pool.map(enter, range(4)))
        assert found[1:] == ["LF-RUN-003"] * 3, race
        assert (owner(folder) if there == "a run" else folder.exists()) == ("old" if there == "a run" else False)


def test_what_a_living_run_is_about_to_replace_is_not_taken_away_by_another(tmp_path):
    folder = tmp_path / "run"
    write_run(folder, "old")
    with ExitStack() as stack:
        stack.enter_context(NewPlace(folder, "new", overwrite=True))
        with pytest.raises(RunDirectoryError, match="LF-RUN-003"):
            stack.enter_context(NewPlace(folder, "other", overwrite=True))
    assert owner(folder) == "old", "the new one failed before it began"


def test_a_link_stays_a_link_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "link").symlink_to("elsewhere/run")
    for number, keep in ((1, True), (2, True), (3, False)):
        with NewPlace(tmp_path / "link", f"run-{number}", overwrite=True) as place:
            write_run(tmp_path / "link", f"run-{number}")
            place.keep = keep
        assert (tmp_path / "link").is_symlink()
        assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["run"]
    assert owner(tmp_path / "elsewhere" / "run") == "run-2"


def test_a_run_that_goes_on_to_its_end_has_replaced_what_it_was_to_replace(tmp_path):
    write_run(tmp_path / "run", "new")
    write_run(tmp_path / ".run.before", "old")
    (tmp_path / "link").symlink_to("run")
    with pytest.raises(KeyboardInterrupt), OldPlace(tmp_path / "link", "new"):
        raise KeyboardInterrupt
    assert owner(tmp_path / ".run.before") == "old"
    with OldPlace(tmp_path / "link", "new"):
        pass
    assert not (tmp_path / ".run.before").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_a_lock_that_the_disk_does_not_take_hides_nothing(tmp_path):
    import resource

    write_run(tmp_path / "run", "new")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(ZeroDivisionError), OldPlace(tmp_path / "run", "new"):
            raise ZeroDivisionError  # whatever it is
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_folder_that_cannot_be_made_is_said_with_what_is_in_its_way(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DiskError, match=r"file is a file; choose another with --output FOLDER \[LF-DISK-001\]"):
        NewPlace(tmp_path / "file" / "run", "new", overwrite=False).__enter__()
    with pytest.raises(DiskError, match="choose another with --output FOLDER"):
        NewPlace(tmp_path / "loop", "new", overwrite=False).__enter__()


def test_a_run_that_was_killed_before_it_replaced_another_has_not_replaced_it(tmp_path):
    folder = tmp_path / "run"
    write_run(tmp_path / ".run.before", "old")
    (folder / "llamafarm").mkdir(parents=True)
    with pytest.raises(RunDirectoryError, match="LF-RUN-004"):
        NewPlace(folder, "new", overwrite=False).__enter__()
    assert owner(folder) == "old"
