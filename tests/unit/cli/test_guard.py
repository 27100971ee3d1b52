from __future__ import annotations

import errno
import os
import signal
from contextlib import suppress

import pytest

import llamafarm.cli.doctor
from llamafarm import errors
from llamafarm.errors import ExitCode, Problem


@pytest.fixture
def failing(cli, monkeypatch):
    """Run a command whose work raises what is given."""

    def run(error, *argv):
        def examine(_):
            raise error

        monkeypatch.setattr(llamafarm.cli.doctor, "examine", examine)
        return cli(*argv, "doctor")

    return run


@pytest.mark.parametrize(
    "kind",
    [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.LlamaFarmError)],
)
def test_each_kind_of_error_has_its_exit_code(failing, kind):
    ended = failing(kind([Problem("LF-X-001", "it is wrong", "a.txt:3", "mend it")]))
    assert ended.code == kind.exit_code
    assert ended.err == "error: a.txt:3: it is wrong; mend it [LF-X-001]\n"


def test_all_problems_are_shown_and_counted(failing):
    ended = failing(errors.DataError([Problem("LF-X-001", "one"), Problem("LF-X-002", "two")]))
    assert ended.err == "error: one [LF-X-001]\nerror: two [LF-X-002]\n2 errors\n"


def test_a_defect_is_one_line_and_a_report(failing, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-very-secret-value")
    ended = failing(RuntimeError("boom a-very-secret-value\nsecond line"))
    (report,) = (tmp_path / ".state").rglob("crash-*.txt")
    assert ended.code == ExitCode.UNEXPECTED
    assert ended.err == (
        f"error: unexpected failure: RuntimeError: boom [redacted]; report: {report} [LF-INTERNAL-001]\n"
    )
    text = report.read_text()
    assert "command: llamafarm doctor" in text
    assert "Traceback (most recent call last)" in text
    assert "raise error" in text
    assert "a-very-secret-value" not in text
    assert report.stat().st_mode & 0o077 == 0


def test_a_report_that_cannot_be_written_is_said(failing, tmp_path):
    (tmp_path / ".state").write_text("a file is in the way")
    ended = failing(RuntimeError("boom"))
    assert ended.code == ExitCode.UNEXPECTED
    assert "no report could be written" in ended.err


def test_debug_shows_the_traceback(failing, monkeypatch):
    assert "Traceback" not in failing(ValueError("boom")).err
    assert "Traceback" in failing(ValueError("boom"), "--debug").err
    monkeypatch.setenv("LLAMAFARM_DEBUG", "1")
    assert "Traceback" in failing(ValueError("boom")).err
    monkeypatch.setenv("LLAMAFARM_DEBUG", "0")
    assert "Traceback" not in failing(ValueError("boom")).err


def test_an_interruption_is_130(failing):
    ended = failing(KeyboardInterrupt())
    assert (ended.code, ended.err) == (ExitCode.INTERRUPTED, "interrupted\n")


def test_what_a_library_makes_of_an_interruption_is_one(failing, tmp_path):
    def stumbling():
        try:
            raise KeyboardInterrupt
        finally:
            {}["restored"]

    try:
        stumbling()
    except KeyError as error:
        ended = failing(error)
    assert (ended.code, ended.err) == (ExitCode.INTERRUPTED, "interrupted\n")
    assert not (tmp_path / ".state").exists()


@pytest.mark.parametrize("kind", [ValueError, errors.ModelError])
def test_an_interruption_that_a_library_hides_is_one_all_the_same(cli, monkeypatch, tmp_path, kind):
    def examine(_):
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise kind.of("LF-X-001", "it is odd") if kind is errors.ModelError else kind("it is odd")

    monkeypatch.setattr(llamafarm.cli.doctor, "examine", examine)
    before = signal.getsignal(signal.SIGINT)
    ended = cli("doctor")
    assert (ended.code, ended.err) == (ExitCode.INTERRUPTED, "interrupted\n")
    assert not (tmp_path / ".state").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_what_is_not_for_this_user_is_7_and_no_defect(failing, tmp_path):
    ended = failing(PermissionError(errno.EACCES, os.strerror(errno.EACCES), "model.safetensors"))
    assert ended.code == ExitCode.DISK
    assert ended.err == (
        "error: model.safetensors: not for this user: Permission denied; change its owner or its mode, or be the user "
        "who made it [LF-DISK-031]\n"
    )
    assert not (tmp_path / ".state").exists()


def test_a_full_disk_is_7_and_no_defect(failing, tmp_path):
    ended = failing(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.txt"))
    assert ended.code == ExitCode.DISK
    assert ended.err == "error: out.txt: the disk does not take it: No space left on device [LF-DISK-003]\n"
    assert not (tmp_path / ".state").exists()
