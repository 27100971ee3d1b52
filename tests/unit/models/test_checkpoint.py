"""The manifest of a folder: what is in it, and every way in which that can be otherwise."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from llamafarm.models.checkpoint import (
    CHECKPOINT_FILE,
    CheckpointManifest,
    damage,
    file_digest,
    read_manifest,
    write_manifest,
)

IDENTITY = {"data": "aa", "template": "ü"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole one, with a sub-folder that is none of its files."""
    place = tmp_path / "checkpoint-7"
    (place / "below").mkdir(parents=True)
    (place / "below" / "file").write_text("x")
    (place / "model.safetensors").write_bytes(bytes(range(256)) * 9000)  # more than is read at a time
    (place / "config.json").write_text("{}")
    write_manifest(place, 7, position={"step": 7, "epoch": 0.5}, identity=IDENTITY)
    return place


def changed(folder: Path, **values: object) -> Path:
    path = folder / CHECKPOINT_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def test_what_is_written_is_what_is_read(folder: Path) -> None:
    weights = bytes(range(256)) * 9000
    expected = {
        "config.json": (2, sha256(b"{}").hexdigest()),
        "model.safetensors": (len(weights), sha256(weights).hexdigest()),
    }
    found = read_manifest(folder)
    assert found == CheckpointManifest(7, expected, {"step": 7, "epoch": 0.5}, IDENTITY)
    assert damage(folder) is None
    assert write_manifest(folder, 7, position={"step": 7, "epoch": 0.5}, identity=IDENTITY) == found, "again: the same"
    assert json.loads((folder / CHECKPOINT_FILE).read_text())["version"] == 1
    assert '\n  "step": 7,\n' in (folder / CHECKPOINT_FILE).read_text(), "people read it too"
    assert "ü" in (folder / CHECKPOINT_FILE).read_text(encoding="utf-8")
    assert file_digest(folder / "model.safetensors") == expected["model.safetensors"][1]


def test_a_file_that_nobody_wrote_down_does_no_harm(folder: Path) -> None:
    (folder / "note.txt").write_text("mine")
    assert damage(folder) is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        "nothing",
        '{"version": 1}',
        '{"version": 1, "step": "x", "files": {}, "position": {}, "identity": {}}',
        '{"version": 1, "step": 1, "files": [], "position": {}, "identity": {}}',
        '{"version": 1, "step": 1, "files": {"a": {"bytes": 1}}, "position": {}, "identity": {}}',
        '{"version": 1, "step": 1e999, "files": {}, "position": {}, "identity": {}}',
        '{"version": 2, "step": 1, "files": {}, "position": {}, "identity": {}}',
        "[" * 100_000,
    ],
)
def test_a_manifest_that_cannot_be_understood_is_none(folder: Path, content: str) -> None:
    (folder / CHECKPOINT_FILE).write_text(content)
    assert read_manifest(folder) is None
    assert damage(folder) == f"it has no {CHECKPOINT_FILE} that can be read"


def test_without_a_manifest_nothing_is_whole(folder: Path) -> None:
    (folder / CHECKPOINT_FILE).unlink()
    assert read_manifest(folder) is None
    assert damage(folder) == f"it has no {CHECKPOINT_FILE} that can be read"


def test_every_damage_is_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert damage(folder) == "model.safetensors has 2,303,999 bytes instead of 2,304,000"
    assert damage(folder, content=False) == "model.safetensors has 2,303,999 bytes instead of 2,304,000"
    weights.write_bytes(whole + b"\0")
    assert damage(folder) == "model.safetensors has 2,304,001 bytes instead of 2,304,000"
    for place in (0, (1 << 20) + 5, len(whole) - 1):
        weights.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert damage(folder) == "model.safetensors is not what was written: its SHA-256 differs"
        assert damage(folder, content=False) is None, "only sizes are asked for"
    weights.unlink()
    assert damage(folder) == "model.safetensors is missing"
    (folder / "config.json").unlink()
    assert damage(folder) == "config.json is missing", "the first by name"
    weights.mkdir()
    (folder / "config.json").write_text("{}")
    assert damage(folder) == "model.safetensors is missing", "a folder is no file"


def test_a_file_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a disk that fails answers; permissions would not keep the superuser out."""

    def fail(file: Path) -> str:
        raise OSError(5, "Input/output error", str(file))

    monkeypatch.setattr("llamafarm.models.checkpoint.file_digest", fail)
    assert damage(folder) == "config.json cannot be read: Input/output error"


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "below/file", "..", ".", ""])
def test_names_lead_nowhere_else(folder: Path, name: str) -> None:
    (folder.parent / "outside").write_text("x")
    entry = {"bytes": 1, "sha256": sha256(b"x").hexdigest()}
    assert damage(changed(folder, files={name: entry})) == f"{name} is missing"


def test_a_name_that_no_file_can_have_is_damage(folder: Path) -> None:
    name = "x" * 300
    entry = {"bytes": 1, "sha256": sha256(b"x").hexdigest()}
    assert damage(changed(folder, files={name: entry})) == f"{name} cannot be read: File name too long"
