"""Files that are there whole or not at all, and errors of the system that libraries hide in exceptions of their own."""

from __future__ import annotations

import errno
import os
import re

import pytest

from llamafarm.files import replacing, sync_file, sync_folder, system_errors, write_atomically


@pytest.fixture
def synced(monkeypatch):
    """What the system was asked to have on disk: descriptor, whether it is a folder, and its size at that time."""
    found, original = [], os.fsync

    def fsync(descriptor):
        state = os.fstat(descriptor)
        found.append((descriptor, state.st_ino, state.st_size))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return found


def open_still(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_all_of_several_files_or_none(tmp_path):
    (tmp_path / "a").write_text("old")

    def fail_half_way() -> None:
        with replacing(tmp_path / "a", tmp_path / "deep/er/b") as files:
            files[0].write(b"new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a"], "nothing half done is left"
    with replacing(tmp_path / "a", tmp_path / "deep/er/b") as (one, other):
        one.write(b"new")
        other.write(b"newer")
        assert (tmp_path / "a").read_text() == "old", "readers see the old one until all is written"
        assert not (tmp_path / "deep/er/b").exists()
    assert ((tmp_path / "a").read_text(), (tmp_path / "deep/er/b").read_text()) == ("new", "newer")
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


def test_an_existing_folder_is_written_into(tmp_path):
    with replacing(tmp_path / "a") as (file,):
        file.write(b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_all_of_a_file_is_on_disk_before_it_gets_its_name(tmp_path, synced):
    write_atomically(tmp_path / "text", "ü" * 10)
    assert [(number, size) for _, number, size in synced] == [((tmp_path / "text").stat().st_ino, 20)]
    assert (tmp_path / "text").read_text(encoding="utf-8") == "ü" * 10


def test_a_disk_that_does_not_take_a_file_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "text").write_text("old")

    def fsync(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        write_atomically(tmp_path / "text", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
    assert (tmp_path / "text").read_text() == "old"
    (tmp_path / "folder").mkdir()
    for sync, path in ((sync_file, tmp_path / "text"), (sync_folder, tmp_path / "folder")):
        with pytest.raises(OSError, match="Input/output"):
            sync(path)


def test_files_and_names_are_had_on_disk(tmp_path, synced):
    (tmp_path / "file").write_text("four")
    sync_file(tmp_path / "file")
    sync_folder(tmp_path)
    assert [number for _, number, _ in synced] == [(tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino]
    assert synced[0][2] == 4
    assert not any(open_still(descriptor) for descriptor, *_ in synced)


def test_a_system_that_cannot_open_folders_is_left_to_itself(tmp_path, monkeypatch, synced):
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patched:  # what Windows answers
        patched.setattr(os, "open", refuse)
        sync_folder(tmp_path)
    assert synced == []


def test_what_tokenizers_raises_for_a_folder_that_is_not_there_is_an_oserror(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    tokenizer = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(Exception, match="os error") as bare:
        tokenizer.save(str(tmp_path / "missing" / "tokenizer.json"))
    assert not isinstance(bare.value, OSError), "once this is one, system_errors can go"
    with pytest.raises(FileNotFoundError) as found, system_errors():
        tokenizer.save(str(tmp_path / "missing" / "tokenizer.json"))
    assert found.value.errno == errno.ENOENT
    assert found.value.strerror == os.strerror(errno.ENOENT)


@pytest.mark.parametrize(
    "error", [ValueError("no number"), OSError(errno.ENOSPC, "full"), OSError("a (os error 2)"), KeyError("os error")]
)
def test_other_errors_pass_as_they_are(error):
    with pytest.raises(type(error), match=re.escape(str(error))) as found, system_errors():
        raise error
    assert found.value is error
