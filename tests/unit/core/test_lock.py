"""Who owns a run directory: told by the system's lock, and by the record where the file system has no locks."""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llamafarm.core import lock
from llamafarm.core.lock import LOCK, OwnerLock, alone_in, live_owner, owned, this_process
from llamafarm.core.record import OWN
from llamafarm.errors import RunDirectoryError

OPEN = Path("/proc/self/fd")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / OWN).mkdir()
    return tmp_path


@pytest.fixture(params=["none in the system", "none in the file system", "none at all"])
def no_locks(request, monkeypatch):
    """As on Windows, or on a network share."""
    number = {"none in the file system": errno.ENOLCK, "none at all": errno.ENOSYS}.get(request.param)

    def flock(*_):
        raise OSError(number, os.strerror(number))

    if number is None:
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", flock)


def record(folder, **changed):
    text = json.dumps(this_process() | {"run_id": "theirs"} | changed)
    (folder / OWN / LOCK).write_text(text)


def said(folder):
    return (folder / OWN / LOCK).read_text()


def test_one_holds_it_and_lets_go(folder):
    with OwnerLock(folder, "mine") as held:
        assert held.stale is None
        assert json.loads(said(folder)) == {"run_id": "mine", **this_process()}
        owner = live_owner(folder)
        assert owner is not None
        assert owner["run_id"] == "mine"
        with pytest.raises(RunDirectoryError, match=rf"mine is writing here \(process {os.getpid()} on .*LF-RUN-003"):
            OwnerLock(folder, "other").__enter__()
        assert json.loads(said(folder))["run_id"] == "mine", "who was refused changes nothing"
    assert said(folder) == ""
    assert live_owner(folder) is None
    with OwnerLock(folder, "other"):
        pass


def test_who_was_refused_lets_go_of_nothing(folder):
    refused = OwnerLock(folder, "other")
    with OwnerLock(folder, "mine"):
        with pytest.raises(RunDirectoryError):
            refused.__enter__()
        refused.__exit__()
        assert live_owner(folder) is not None


@pytest.mark.skipif(not OPEN.is_dir(), reason="where a process cannot count its files")
def test_being_refused_leaves_no_file_open(folder):
    with OwnerLock(folder, "mine"):
        before = len(list(OPEN.iterdir()))
        for _ in range(5):
            with pytest.raises(RunDirectoryError):
                OwnerLock(folder, "other").__enter__()
            live_owner(folder)
            with alone_in(folder):
                pass
        assert len(list(OPEN.iterdir())) == before


def test_what_a_dead_owner_said_is_kept_for_who_comes_next(folder):
    record(folder, pid=os.getpid())  # nobody has the lock
    with OwnerLock(folder, "mine") as held:
        assert held.stale is not None
        assert held.stale["run_id"] == "theirs"
    assert said(folder) == ""


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_record_that_says_nothing(folder, text):
    (folder / OWN / LOCK).write_text(text)
    assert live_owner(folder) is None
    with (folder / OWN / LOCK).open("a+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert live_owner(folder) == {"pid": "unknown"}
        with pytest.raises(RunDirectoryError, match=r"a run is writing here \(process None on this machine\)"):
            OwnerLock(folder, "mine").__enter__()
    with OwnerLock(folder, "mine") as held:
        assert held.stale is None


def test_a_record_that_was_longer_is_gone_as_a_whole(folder):
    record(folder, run_id="x" * 5000)
    with OwnerLock(folder, "mine"):
        assert json.loads(said(folder))["run_id"] == "mine"


def test_an_owner_is_named_by_its_manifest_where_its_record_does_not(folder):
    (folder / OWN / "manifest.json").write_text('{"run_id": "of the manifest"}')
    assert "of the manifest is writing here (process 7 on this machine)" in str(owned(folder, {"pid": 7}))
    known = {"pid": 7, "run_id": "theirs", "host": "far"}
    assert "theirs is writing here (process 7 on far)" in str(owned(folder, known))


def test_nobody_owns_what_is_not_there(tmp_path):
    assert live_owner(tmp_path) is None


def test_a_full_disk_ends_no_run(folder):
    """Neither when the lock is taken nor when it is let go. A limit on the size of files refuses as that disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    held = OwnerLock(folder, "mine")
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        held.__enter__()
        assert said(folder) == "", "what it cannot say it does not"
        assert live_owner(folder) is not None
        held.__exit__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert live_owner(folder) is None


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_record_says_who_owns_it(folder):
    with OwnerLock(folder, "mine"):
        owner = live_owner(folder)
        assert owner is not None
        assert owner["run_id"] == "mine"
        with pytest.raises(RunDirectoryError, match="LF-RUN-003"):
            OwnerLock(folder, "other").__enter__()
    assert live_owner(folder) is None
    with alone_in(folder):  # nobody waits
        pass


@pytest.mark.usefixtures("no_locks")
def test_without_locks_only_the_dead_lose_it(folder):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    alive = {"of this process": {}, "of another machine, that cannot be asked": {"host": "far", "pid": gone.pid}}
    for owner, changed in alive.items():
        record(folder, **changed)
        assert live_owner(folder) is not None, owner
        with pytest.raises(RunDirectoryError):
            OwnerLock(folder, "mine").__enter__()
    dead = {
        "ended": {"pid": gone.pid},
        "of another start of this machine": {"boot": "another"},
        "whose number was given to another process": {"process_started": 1},
    }
    for owner, changed in dead.items():
        record(folder, **changed)
        assert live_owner(folder) is None, owner
        with OwnerLock(folder, "mine") as held:
            assert held.stale is not None


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_process_of_another_user_is_alive(folder, monkeypatch):
    def kill(pid, number):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    record(folder)
    monkeypatch.setattr(os, "kill", kill)
    assert live_owner(folder) is not None


def test_a_lock_that_cannot_be_had_for_another_reason_is_not_had(folder, monkeypatch):
    """Only what says that there are no locks may make the record decide."""

    def flock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(RunDirectoryError, match="LF-RUN-003"):
        OwnerLock(folder, "mine").__enter__()


def test_each_way_to_say_that_there_are_no_locks(folder, monkeypatch):
    for number in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):

        def flock(*_, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)
        with OwnerLock(folder, "mine"):
            assert live_owner(folder) is not None


def test_one_at_a_time_decides(folder):
    inside, order = threading.Event(), []

    def second():
        inside.wait(10)
        with alone_in(folder):
            order.append("second")

    other = threading.Thread(target=second)
    other.start()
    with alone_in(folder):
        inside.set()
        other.join(0.3)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]


def test_a_folder_that_is_not_there_keeps_nobody_waiting(tmp_path):
    with alone_in(tmp_path / "gone"):
        pass


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what /proc says")
def test_a_process_is_told_from_all_others(monkeypatch):
    before = this_process()
    assert before["pid"] == os.getpid()
    assert before["host"]
    assert before["boot"]
    with mmap.mmap(-1, 64 << 20):
        assert this_process() == before, "whatever it does meanwhile"
    code = "from llamafarm.core.lock import this_process; import json; print(json.dumps(this_process()))"
    other = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert other["process_started"] > before["process_started"]
    assert (other["boot"], other["host"]) == (before["boot"], before["host"])


@pytest.mark.usefixtures("no_locks")
def test_without_anything_that_the_system_says_a_number_tells_who_lives(folder, monkeypatch):
    """As on systems that have no /proc."""
    read_text = lock.Path.read_text

    def elsewhere(path, *given, **named):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return read_text(path, *given, **named)

    monkeypatch.setattr(lock.Path, "read_text", elsewhere)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    record(folder)
    assert live_owner(folder) is not None
    record(folder, pid=gone.pid)
    assert live_owner(folder) is None


def test_where_the_system_says_nothing_of_processes(monkeypatch):
    def absent(*_, **__):
        raise FileNotFoundError(errno.ENOENT, "gone")

    monkeypatch.setattr(lock.Path, "read_text", absent)
    assert (this_process()["boot"], this_process()["process_started"]) == ("", None)
    monkeypatch.setattr(lock.Path, "read_text", lambda *_, **__: "1 (x) S 2")
    assert this_process()["process_started"] is None
    monkeypatch.setattr(lock.Path, "read_text", lambda *_, **__: "1 (a b) c) S " + "? " * 40)
    assert this_process()["process_started"] is None
