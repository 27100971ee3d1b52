from __future__ import annotations

import errno
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier

import pytest

from llamafarm.core.lock import live_owner
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


def test_a_run_that_fails_before_it_began_leaves_nothing_that_it_made(tmp_path):
    folder = tmp_path / "there" / "deep" / "er" / "run"
    (tmp_path / "there").mkdir()
    with NewPlace(folder, "new", overwrite=False) as place:
        assert (place.folder, place.run_id) == (folder, "new")
        assert live_owner(folder)["run_id"] == "new"
        assert (folder / "llamafarm").stat().st_mode & 0o777 == 0o700, "what it holds is nobody else's business"
        (folder / "half").write_text("half")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_folder_that_another_run_is_in_by_now_stays(tmp_path):
    with NewPlace(tmp_path / "deep" / "er" / "run", "new", overwrite=False):
        (tmp_path / "deep" / "other").mkdir()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "other"]


def test_what_is_kept_replaces_what_was_there(tmp_path):
    folder = tmp_path / "run"
    write_run(folder, "old")
    with NewPlace(folder, "new", overwrite=True) as place:
        assert owner(tmp_path / ".run.before") == "old"
        write_run(folder, "new")
        place.keep = True
    assert owner(folder) == "new"
    assert live_owner(folder) is None
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with NewPlace(tmp_path / "other", "first", overwrite=False) as place:
        place.keep = True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "run"]


def test_an_empty_folder_is_used_as_it_is(tmp_path):
    """It may be a disk of its own."""
    (tmp_path / "run").mkdir()
    number = (tmp_path / "run").stat().st_ino
    with NewPlace(tmp_path / "run", "new", overwrite=False) as place:
        assert (tmp_path / "run").stat().st_ino == number
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
        place.keep = True
    assert (tmp_path / "run").stat().st_ino == number


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DiskError, match=r"cannot make the output folder: .*LF-DISK-001"):
        NewPlace(tmp_path / "file" / "run", "new", overwrite=False).__enter__()


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "a stillborn run"])
def test_a_run_that_was_to_be_replaced_comes_back_after_a_kill(tmp_path, there):
    folder = tmp_path / "run"
    write_run(tmp_path / ".run.before", "old")
    if there != "nothing":
        (folder / "llamafarm" if there == "a stillborn run" else folder).mkdir(parents=True)
    with pytest.raises(RunDirectoryError, match="LF-RUN-004"):
        NewPlace(folder, "new", overwrite=False).__enter__()
    assert owner(folder) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_that_replaced_another_is_not_undone_after_a_kill(tmp_path):
    folder = tmp_path / "run"
    write_run(tmp_path / ".run.before", "old")
    write_run(folder, "later")
    with pytest.raises(RunDirectoryError, match="LF-RUN-004"):
        NewPlace(folder, "new", overwrite=False).__enter__()
    assert owner(folder) == "later"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_stillborn_run_is_worth_nothing(tmp_path):
    (tmp_path / "run" / "llamafarm").mkdir(parents=True)
    (tmp_path / "run" / "llamafarm" / "run.log").write_text("it began")
    with NewPlace(tmp_path / "run", "new", overwrite=False):
        assert [path.name for path in (tmp_path / "run" / "llamafarm").iterdir()] == ["run.lock"]
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert list(tmp_path.iterdir()) == []


def test_who_comes_back_clears_what_was_half_written_and_leaves_the_rest(tmp_path):
    write_run(tmp_path, "mine")
    (tmp_path / "llamafarm" / ".manifest.json.77.part").write_text("{")
    with OldPlace(tmp_path, "mine") as place:
        assert place.keep
        assert live_owner(tmp_path)["run_id"] == "mine"
        assert sorted(path.name for path in (tmp_path / "llamafarm").iterdir()) == ["manifest.json", "run.lock"]
        with pytest.raises(RunDirectoryError, match="LF-RUN-003"):
            OldPlace(tmp_path, "mine").__enter__()
    assert live_owner(tmp_path) is None
    assert owner(tmp_path) == "mine"


def test_a_run_that_is_gone_is_not_come_back_to(tmp_path):
    with pytest.raises(DiskError, match=r"cannot write into the run's folder: No such file .*LF-DISK-022"):
        OldPlace(tmp_path / "gone", "run").__enter__()


def test_what_cannot_be_taken_away_hides_no_error(tmp_path, monkeypatch):
    unlink = os.unlink

    def refuse(path, *rest, **named):
        if Path(path).name == "half":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        unlink(path, *rest, **named)

    def fail():
        with NewPlace(tmp_path / "deep" / "run", "new", overwrite=False) as place:
            (place.folder / "half").write_text("half")
            monkeypatch.setattr(os, "unlink", refuse)
            raise ValueError("why it failed")

    with pytest.raises(ValueError, match="why it failed"):
        fail()
    assert live_owner(tmp_path / "deep" / "run") is None


def replaced(folder: Path, run_id: str, *, dies: bool = False) -> None:
    """A run that replaces what is there, and is worth more in the end; or is killed on the way."""
    place = NewPlace(folder, run_id, overwrite=True).__enter__()
    (folder / "model").write_text(run_id)
    write_run(folder, run_id)
    manifest = folder / "llamafarm" / "manifest.json"
    if not dies:
        names = sorted(path.name for path in folder.iterdir())
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"files": names}))
        place.keep = True
        place.__exit__()
    else:
        place._held.close()


@pytest.mark.parametrize("dies", [False, True])
def test_what_others_put_beside_a_run_stays_when_it_is_replaced(tmp_path, dies):
    folder = tmp_path / "run"
    replaced(folder, "one")
    (folder / "rows.jsonl").write_text("rows")
    (folder / "inner" / "llamafarm").mkdir(parents=True)
    (folder / "export" / "gguf").mkdir(parents=True)
    (folder / "answers.jsonl").write_text("rows too")
    (folder / "merged").mkdir()
    (folder / "merged" / "export_report.json").write_text("{}")
    for number in range(2 * dies):
        replaced(folder, f"killed-{number}", dies=True)
    replaced(folder, "three")
    assert sorted(path.name for path in folder.iterdir()) == [
        "answers.jsonl", "inner", "llamafarm", "model", "rows.jsonl"
    ]  # fmt: skip
    assert ((folder / "rows.jsonl").read_text(), (folder / "model").read_text()) == ("rows", "three")
    assert not (tmp_path / ".run.before").exists()
    (folder / "training_loss.png").touch()
    replaced(folder, "four")
    assert (folder / "rows.jsonl").is_file()
    assert not (folder / "training_loss.png").exists()


def test_measures_of_a_run_go_with_it(tmp_path):
    folder = tmp_path / "run"
    replaced(folder, "one")
    for name in ("evaluation_results.json", "answers.jsonl"):
        (folder / name).touch()
    replaced(folder, "two")
    assert sorted(path.name for path in folder.iterdir()) == ["llamafarm", "model"]


def test_a_run_that_has_not_said_what_it_wrote_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "run"
    write_run(folder, "one")
    (folder / "checkpoint-9").mkdir()
    replaced(folder, "two")
    assert sorted(path.name for path in folder.iterdir()) == ["llamafarm", "model"]


def test_a_name_that_the_new_run_takes_is_kept_beside_it(tmp_path):
    folder = tmp_path / "run"
    replaced(folder, "one")
    manifest = folder / "llamafarm" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"files": ["llamafarm"]}))
    replaced(folder, "two")
    assert ((folder / "model").read_text(), (folder / "model.before").read_text()) == ("two", "one")
