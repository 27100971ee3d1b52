"""Whose an output folder is."""

from __future__ import annotations

import json

import pytest

from llamafarm.core.lock import LOCK, OwnerLock
from llamafarm.core.output import check_output_dir, is_stillborn
from llamafarm.core.record import OWN, manifest_of, settings_of
from llamafarm.errors import RunDirectoryError


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "out"
    (place / OWN).mkdir(parents=True)
    return place


def write(folder, **manifest):
    (folder / OWN / "manifest.json").write_text(json.dumps(manifest))


def refusal(folder, overwrite=False):
    with pytest.raises(RunDirectoryError) as caught:
        check_output_dir(folder, overwrite=overwrite)
    (problem,) = caught.value.problems
    assert problem.where == str(folder)
    return problem


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_not_there_or_empty_is_free(tmp_path, overwrite):
    check_output_dir(tmp_path / "new", overwrite=overwrite)
    check_output_dir(tmp_path, overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_is_never_taken(tmp_path, overwrite):
    (tmp_path / "file").write_text("x")
    assert refusal(tmp_path / "file", overwrite).id == "LF-RUN-001"
    assert refusal(tmp_path, overwrite).id == "LF-RUN-002"


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_run_left_that_was_killed_before_it_began_is_free_unless_it_lives(folder, overwrite):
    (folder / OWN / "strategy.yaml").write_text("name: x")
    (folder / OWN / LOCK).touch()
    check_output_dir(folder, overwrite=overwrite)
    with OwnerLock(folder, "theirs"):
        problem = refusal(folder, overwrite)
        assert (problem.id, "theirs is writing here" in problem.message) == ("LF-RUN-003", True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_lives_is_never_replaced(folder, overwrite):
    write(folder, run_id="its", status="running")
    with OwnerLock(folder, "its"):
        assert refusal(folder, overwrite).id == "LF-RUN-003"


@pytest.mark.parametrize(
    ("status", "said", "goes_on"),
    [("completed", "completed", False), ("running", "killed", True), ("failed", "failed", True)],
)
def test_a_run_is_replaced_only_when_that_was_asked_for(folder, status, said, goes_on):
    write(folder, run_id="its", status=status)
    problem = refusal(folder)
    assert (problem.id, problem.message) == ("LF-RUN-004", f"the output folder holds the run its ({said})")
    assert (f"llamafarm train --resume {folder}" in problem.hint) is goes_on
    assert "--overwrite" in problem.hint
    check_output_dir(folder, overwrite=True)


def test_only_what_a_run_writes_before_its_manifest_is_worth_nothing(folder):
    for name in (LOCK, "strategy.yaml", "resolved.yaml", "config.json", "run.log", ".manifest.json.7.part"):
        (folder / OWN / name).touch()
        assert is_stillborn(folder), name
    for path in (folder / OWN / "events.jsonl", folder / OWN / "deeper", folder / "model.safetensors"):
        path.mkdir()
        assert not is_stillborn(folder), path
        path.rmdir()
    assert is_stillborn(folder)
    assert not is_stillborn(folder / OWN)
    assert not is_stillborn(folder / "nothing")
    (folder / "empty").mkdir()
    assert not is_stillborn(folder / "empty")


def test_a_sub_folder_of_our_name_that_is_a_file_is_none_of_ours(tmp_path):
    (tmp_path / OWN).write_text("mine")
    assert not is_stillborn(tmp_path)
    assert refusal(tmp_path, overwrite=True).id == "LF-RUN-002"


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000, b"", b"null"])
def test_a_record_that_cannot_be_read_is_none(folder, content):
    """Which must not be taken for a run: nobody may replace what is not known."""
    assert (manifest_of(folder), settings_of(folder)) == (None, None)
    for name in ("manifest.json", "config.json"):
        (folder / OWN / name).write_bytes(content)
    assert (manifest_of(folder), settings_of(folder)) == (None, None)
    assert refusal(folder, overwrite=True).id == "LF-RUN-002"


def test_records_are_read(folder):
    write(folder, run_id="ü")
    (folder / OWN / "config.json").write_text('{"training.max_steps": 3}')
    assert (manifest_of(folder), settings_of(folder)) == ({"run_id": "ü"}, {"training.max_steps": 3})
    (folder / OWN / "manifest.json").unlink()
    assert manifest_of(folder) is None
