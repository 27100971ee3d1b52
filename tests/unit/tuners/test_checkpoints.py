"""Checkpoints: rotated by their steps, checked before they are trusted, put aside when they are not whole."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from llamafarm.errors import DiskError
from llamafarm.models.checkpoint import CHECKPOINT_FILE, damage, read_manifest, write_manifest
from llamafarm_methods.lora import Lora
from llamafarm_tuners.pytorch._checkpoints import BEST, Checkpoints, newest, recover, restore_weights
from llamafarm_tuners.pytorch._state import TrainingState
from llamafarm_tuners.pytorch.progress import PROGRESS


def checkpoints(tmp_path, trained, limit=None) -> Checkpoints:
    return Checkpoints(tmp_path, trained, limit, lambda step: {"global_step": step})


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [1, 2, 3, 4]),
        (2, None, [3, 4]),
        (2, 1, [1, 3, 4]),  # the best is kept besides
        (1, 2, [2, 4]),
        (1, 4, [4]),
        (2, 3, [2, 3, 4]),
    ],
)
def test_rotation_never_takes_the_best_or_the_newest(tmp_path, trained, limit, best, left):
    made = checkpoints(tmp_path, trained, limit)
    for step in (1, 2, 3, 4):
        if step == best:
            made.save_best(step)
        made.save(step, best if best is not None and best <= step else None)
    assert made.saved == left
    assert sorted(int(name.split("-")[1]) for name in names(tmp_path) if name != BEST) == left


def test_a_checkpoint_of_the_best_step_shares_its_files(tmp_path, trained):
    made = checkpoints(tmp_path, trained)
    best = made.save_best(5) / "adapter_model.safetensors"
    assert (made.save(5, 5) / "adapter_model.safetensors").samefile(best)
    assert not (made.save(6, 5) / "adapter_model.safetensors").samefile(best)


@pytest.mark.parametrize("which", ["trained", "full"])
def test_a_checkpoint_restores_the_weights(tmp_path, which, request):
    subject = request.getfixturevalue(which)
    path = checkpoints(tmp_path, subject).save_best(1)
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    with torch.no_grad():
        for parameter in subject.model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    restore_weights(subject, path)
    after = subject.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def kept(tmp_path, trained, steps=(2, 4, 6)) -> list:
    """Checkpoints of a run that was stopped, resumable as far as the store can see."""
    made = checkpoints(tmp_path, trained)
    for step in steps:
        path = made.save(step, None)
        (path / "training_state.json").write_text("{}")
        write_manifest(path, step, position={}, identity={})
    return [tmp_path / f"checkpoint-{step}" for step in steps]


def recovered(tmp_path, trained, wanted=None):
    said: list[str] = []
    found = recover(tmp_path, wanted, said.append)
    return found.checkpoint, list(found.saved), said


def test_the_newest_checkpoint_is_found_whatever_the_clock_says(tmp_path, trained):
    first, _, last = kept(tmp_path, trained)
    os.utime(first, (4e9, 4e9))
    assert recovered(tmp_path, trained) == (last, [2, 4, 6], [])


def damages() -> dict:
    def cut(file, size):
        with file.open("r+b") as stream:
            stream.truncate(size)

    def flip(file, place):
        content = bytearray(file.read_bytes())
        content[place % len(content)] ^= 1
        file.write_bytes(content)

    def swap(file):
        other = file.parent.parent / "checkpoint-2" / file.name
        (file.parent / "x").write_bytes(file.read_bytes()[:-1] + b"x")
        (file.parent / "x").replace(file)
        assert other.exists()

    return {
        "missing": lambda file: file.unlink(),
        "empty": lambda file: cut(file, 0),
        "one byte": lambda file: cut(file, 1),
        "half": lambda file: cut(file, file.stat().st_size // 2),
        "almost": lambda file: cut(file, file.stat().st_size - 1),
        "first bit": lambda file: flip(file, 0),
        "a bit in the middle": lambda file: flip(file, file.stat().st_size // 2),
        "last bit": lambda file: flip(file, -1),
        "another's": swap,
    }


@pytest.mark.parametrize("damage", damages())
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "training_state.json", "trainer_state.json"])
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(tmp_path, trained, name, damage):
    _, before, last = kept(tmp_path, trained)
    damages()[damage](last / name)
    found, saved, said = recovered(tmp_path, trained)
    assert (found, saved) == (before, [2, 4])
    assert len(said) == 1
    assert name in said[0]
    assert said[0].endswith("put aside as damaged-checkpoint-6")
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "damaged-checkpoint-6"]


def test_a_manifest_that_cannot_be_read_is_damage_too(tmp_path, trained):
    _, before, last = kept(tmp_path, trained)
    (last / "llamafarm_checkpoint.json").write_text('{"version": 1, "files": {"../x": {}}}')
    assert recovered(tmp_path, trained)[0] == before


def test_a_manifest_cannot_name_files_elsewhere(tmp_path, trained):
    _, before, last = kept(tmp_path, trained)
    path = last / "llamafarm_checkpoint.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../checkpoint-2/README.md"] = manifest["files"].pop("README.md")
    path.write_text(json.dumps(manifest))
    assert recovered(tmp_path, trained)[0] == before


def test_a_checkpoint_asked_for_by_name_is_never_replaced_by_another(tmp_path, trained):
    _, middle, last = kept(tmp_path, trained)
    (middle / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(DiskError, match=r"checkpoint-4 cannot be used.*LF-DISK-021"):
        recovered(tmp_path, trained, middle)
    assert not last.exists()
    assert (tmp_path / "later-checkpoint-6").is_dir()


def test_what_was_half_written_is_cleared_and_what_was_to_be_replaced_is_put_back(tmp_path, trained):
    kept(tmp_path, trained, (2,))
    (tmp_path / ".writing-abc").mkdir()
    (tmp_path / ".writing-abc/half").write_text("half")
    (tmp_path / ".old-abc").mkdir()
    checkpoints(tmp_path, trained).save_best(2).rename(tmp_path / ".old-abc" / BEST)
    assert recovered(tmp_path, trained)[0] == tmp_path / "checkpoint-2"
    assert names(tmp_path) == ["checkpoint-2", BEST]


def test_the_best_checkpoint_is_that_of_the_state_that_is_resumed(tmp_path, trained):
    kept(tmp_path, trained, (2, 4))
    made = checkpoints(tmp_path, trained)
    made.save_best(5)  # found after the last checkpoint, and then the run was killed
    recover(tmp_path, None, print)
    made.require_best(4, print)
    manifest = read_manifest(tmp_path / BEST)
    assert manifest is not None
    assert manifest.step == 4
    assert (tmp_path / BEST / "adapter_model.safetensors").samefile(
        tmp_path / "checkpoint-4" / "adapter_model.safetensors"
    )
