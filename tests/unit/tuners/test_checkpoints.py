"""Checkpoints: rotated by their steps, checked before they are trusted, put aside when they are not whole."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

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


@pytest.fixture(scope="module")
def a_run(tmp_path_factory, make_trained):
    """Checkpoints of a run that was stopped, resumable as far as the store can see."""
    folder = tmp_path_factory.mktemp("run")
    made = checkpoints(folder, make_trained())
    for step in (2, 4, 6):
        path = made.save(step, None)
        (path / "training_state.json").write_text("{}")
        write_manifest(path, step, position={}, identity={})
    return folder


@pytest.fixture
def kept(tmp_path, a_run) -> list:
    """The same, to be changed."""
    shutil.copytree(a_run, tmp_path, dirs_exist_ok=True)
    return [tmp_path / f"checkpoint-{step}" for step in (2, 4, 6)]


def recovered(tmp_path, wanted=None):
    said: list[str] = []
    found = recover(tmp_path, wanted, said.append)
    return found.checkpoint, list(found.saved), said


def test_the_newest_checkpoint_is_found_whatever_the_clock_says(tmp_path, kept):
    first, _, last = kept
    os.utime(first, (4e9, 4e9))
    assert recovered(tmp_path) == (last, [2, 4, 6], [])


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
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(tmp_path, kept, name, damage):
    _, before, last = kept
    damages()[damage](last / name)
    found, saved, said = recovered(tmp_path)
    assert (found, saved) == (before, [2, 4])
    assert len(said) == 1
    assert name in said[0]
    assert said[0].endswith("put aside as damaged-checkpoint-6")
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "damaged-checkpoint-6"]


def test_a_manifest_that_cannot_be_read_is_damage_too(tmp_path, kept):
    _, before, last = kept
    (last / "llamafarm_checkpoint.json").write_text('{"version": 1, "files": {"../x": {}}}')
    assert recovered(tmp_path)[0] == before


def test_a_manifest_cannot_name_files_elsewhere(tmp_path, kept):
    _, before, last = kept
    path = last / "llamafarm_checkpoint.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../checkpoint-2/README.md"] = manifest["files"].pop("README.md")
    path.write_text(json.dumps(manifest))
    assert recovered(tmp_path)[0] == before


def test_a_checkpoint_asked_for_by_name_is_never_replaced_by_another(tmp_path, kept):
    _, middle, last = kept
    (middle / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(DiskError, match=r"checkpoint-4 cannot be used.*LF-DISK-021"):
        recovered(tmp_path, middle)
    assert not last.exists()
    assert (tmp_path / "later-checkpoint-6").is_dir()


def test_what_was_half_written_is_cleared_and_what_was_to_be_replaced_is_put_back(tmp_path, trained, kept):
    for path in kept[1:]:
        shutil.rmtree(path)
    (tmp_path / ".writing-abc").mkdir()
    (tmp_path / ".writing-abc/half").write_text("half")
    (tmp_path / ".old-abc").mkdir()
    checkpoints(tmp_path, trained).save_best(2).rename(tmp_path / ".old-abc" / BEST)
    assert recovered(tmp_path)[0] == tmp_path / "checkpoint-2"
    assert names(tmp_path) == ["checkpoint-2", BEST]


def test_the_best_checkpoint_is_that_of_the_state_that_is_resumed(tmp_path, trained, kept):
    made = checkpoints(tmp_path, trained)
    made.save_best(5)  # found after the last checkpoint, and then the run was killed
    recover(tmp_path, None, print)
    told: list[str] = []
    made.require_best(4, told.append)
    best, same = tmp_path / BEST, tmp_path / "checkpoint-4"
    manifest = read_manifest(best)
    assert manifest is not None
    assert (manifest.step, damage(best), told) == (4, None, [])
    assert (best / "adapter_model.safetensors").samefile(same / "adapter_model.safetensors")
    assert names(best) == [name for name in names(same) if name != "training_state.json"], "no run goes on from it"
    assert damage(same) is None


def test_a_best_checkpoint_that_is_right_stays_as_it_is(tmp_path, trained, kept):
    made = checkpoints(tmp_path, trained)
    number = made.save_best(4).stat().st_ino
    made.require_best(4, pytest.fail)
    made.require_best(None, pytest.fail)
    assert (tmp_path / BEST).stat().st_ino == number
    (tmp_path / BEST / "README.md").unlink()
    made.require_best(4, pytest.fail)
    assert (tmp_path / BEST).stat().st_ino != number
    assert damage(tmp_path / BEST) is None


@pytest.mark.parametrize("lost", ["gone", "damaged"])
def test_a_best_checkpoint_that_is_lost_is_said(tmp_path, trained, kept, lost):
    if lost == "gone":
        shutil.rmtree(tmp_path / "checkpoint-4")
    else:
        (tmp_path / "checkpoint-4" / "README.md").write_text("another")
    told: list[str] = []
    checkpoints(tmp_path, trained).require_best(None, told.append)
    assert told == [], "there is none to have"
    checkpoints(tmp_path, trained).require_best(4, told.append)
    assert told == ["checkpoint-best, of step 4, is lost: the next better one takes its place"]
    assert not (tmp_path / BEST).exists()


def test_a_better_one_than_is_wanted_stays_where_the_wanted_one_is_gone(tmp_path, trained, kept):
    """It will be found again by the steps that are taken again."""
    made = checkpoints(tmp_path, trained)
    made.save_best(5)
    made.require_best(3, pytest.fail)
    manifest = read_manifest(tmp_path / BEST)
    assert manifest is not None
    assert manifest.step == 5


def test_what_shares_the_files_of_the_best_changes_none_of_them(tmp_path, trained):
    records = iter(range(100))
    made = Checkpoints(tmp_path, trained, None, lambda step: {"global_step": step, "number": next(records)})
    best = made.save_best(5)
    before = {file.name: file.read_bytes() for file in best.iterdir()}
    same = made.save(5, 5)
    assert {file.name: file.read_bytes() for file in best.iterdir()} == before
    assert (damage(best), damage(same)) == (None, None)
    assert (same / "trainer_state.json").read_bytes() != before["trainer_state.json"], "its own record"
    assert json.loads((same / "trainer_state.json").read_text())["number"] > 0


def test_the_weights_of_a_best_checkpoint_of_another_step_are_not_taken(tmp_path, trained):
    """A run that was killed may have left one of a later step under that name."""
    made = checkpoints(tmp_path, trained)
    later = made.save_best(7)
    assert not (made.save(5, 5) / "adapter_model.safetensors").samefile(later / "adapter_model.safetensors")
    (later / CHECKPOINT_FILE).unlink()
    assert not (made.save(7, 7) / "adapter_model.safetensors").samefile(later / "adapter_model.safetensors")


def test_what_a_checkpoint_says_of_itself(tmp_path, trained):
    made = Checkpoints(tmp_path, trained, None, lambda step: {"epoch": step / 2}, {"data": "digest"})
    signs = PROGRESS.now[0]
    path = made.save(3, None)
    assert PROGRESS.now[0] >= signs + 2, "a sign of life after the model, and one after the state"
    manifest = read_manifest(path)
    assert manifest is not None
    assert (manifest.step, manifest.position, manifest.identity) == (3, {"step": 3, "epoch": 1.5}, {"data": "digest"})
    assert json.loads((path / "trainer_state.json").read_text()) == {"epoch": 1.5}
    assert names(made.save_as("stage-1", 3)) == names(path)


def test_a_state_is_written_into_a_checkpoint(tmp_path, trained):
    state = TrainingState(3, {"x": torch.zeros(2)}, {}, {}, None, {}, ())
    path = checkpoints(tmp_path, trained).save(3, None, state)
    assert {"training_state.json", "training_state.safetensors", "optimizer.safetensors"} <= set(names(path))
    assert damage(path) is None
    assert recovered(tmp_path) == (path, [3], [])


def test_one_without_a_state_is_none_to_go_on_from(tmp_path, kept):
    _, before, last = kept
    (last / "training_state.json").unlink()
    write_manifest(last, 6, position={}, identity={})
    said = "checkpoint-6 cannot be used: it has no training_state.json; put aside as damaged-checkpoint-6"
    assert recovered(tmp_path) == (before, [2, 4], [said])


def test_what_earlier_checkpoints_hold_is_read_when_they_are_needed(tmp_path, kept):
    """Of those that are not gone on from, sizes are compared: reading all of them takes long."""
    first, before, last = kept
    content = bytearray((first / "README.md").read_bytes())
    content[0] ^= 1
    (first / "README.md").write_bytes(content)
    assert recovered(tmp_path) == (last, [2, 4, 6], [])
    (before / "README.md").write_text("short")
    found, saved, _ = recovered(tmp_path)
    assert (found, saved) == (last, [2, 6])
    shutil.rmtree(last)
    assert recovered(tmp_path)[:2] == (None, [])


def test_what_is_put_aside_twice_keeps_both(tmp_path, kept):
    for name in ("damaged-checkpoint-6", "damaged-checkpoint-6-1"):
        (tmp_path / name).mkdir()
    (kept[2] / "README.md").unlink()
    _, _, said = recovered(tmp_path)
    assert said[0].endswith("put aside as damaged-checkpoint-6-2")
    assert {"damaged-checkpoint-6", "damaged-checkpoint-6-1", "damaged-checkpoint-6-2"} <= set(names(tmp_path))
    assert "README.md" not in names(tmp_path / "damaged-checkpoint-6-2")


def test_what_comes_after_the_one_that_is_asked_for_is_put_aside(tmp_path, kept):
    first, middle, last = kept
    found, saved, said = recovered(tmp_path, middle)
    assert (found, saved) == (middle, [2, 4])
    assert said == ["checkpoint-6 is later than checkpoint-4: put aside as later-checkpoint-6"]
    assert not last.exists()
    (first / "README.md").unlink()
    found, saved, said = recovered(tmp_path, middle)
    assert (found, saved, len(said)) == (middle, [4], 1)
    assert said[0].endswith("put aside as damaged-checkpoint-2")


def test_a_run_without_checkpoints_begins_anew(tmp_path):
    (tmp_path / "checkpoint-").mkdir()
    (tmp_path / "checkpoint-7-old").mkdir()
    assert recovered(tmp_path) == (None, [], [])
    assert (newest(tmp_path, None).checkpoint, newest(tmp_path, None).saved) == (None, ())


def test_another_process_finds_the_same(tmp_path, kept):
    """After the first has put aside what is not to be used."""
    assert newest(tmp_path, None).checkpoint == kept[2]
    assert newest(tmp_path, kept[1]).checkpoint == kept[1]
    (tmp_path / "checkpoint-10").mkdir()
    assert newest(tmp_path, None).checkpoint == tmp_path / "checkpoint-10", "by number, not by letter"


def test_a_checkpoint_that_is_gone_needs_no_removing(tmp_path, trained):
    made = Checkpoints(tmp_path, trained, 1, lambda step: {}, saved=(1, 2))
    made.save(3, None)
    assert made.saved == [3]
    assert names(tmp_path) == ["checkpoint-3"]
    made.save(3, None)
    assert made.saved == [3], "the same step twice is one checkpoint"


class PutsBack(Lora):
    """Brings its weights back itself."""

    def put_back(self, model, folder) -> bool:
        (folder / "asked").touch()
        return True


def test_a_method_may_put_its_weights_back_itself(tmp_path, trained):
    methods = (Lora(Lora.Config()), PutsBack(Lora.Config()))
    restore_weights(replace(trained, methods=methods), tmp_path)  # which holds no weights at all
    assert (tmp_path / "asked").exists()


def test_weights_that_came_from_another_folder_are_put_back_without_its_code(tmp_path, full, monkeypatch):
    """In the format of the model that is in memory."""
    full.model.to(torch.bfloat16)
    path = checkpoints(tmp_path, full).save_best(1)
    given = {}
    original = type(full.model).from_pretrained.__func__

    def from_pretrained(cls, folder, **options):
        given.update(options)
        return original(cls, folder, **options)

    monkeypatch.setattr(type(full.model), "from_pretrained", classmethod(from_pretrained))
    restore_weights(full, path)
    assert (given["trust_remote_code"], given["use_safetensors"], given["dtype"]) == (False, True, torch.bfloat16)
