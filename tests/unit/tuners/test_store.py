"""Models, adapters and checkpoints are written whole or not at all, and are on the disk before they have their name."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from llamafarm.errors import DiskError, NumericError
from llamafarm.models.vocabulary import VOCABULARY_FILE
from llamafarm_methods.lora import Lora
from llamafarm_tuners.pytorch._checkpoints import BEST, Checkpoints
from llamafarm_tuners.pytorch._store import (
    link_files,
    merged_into,
    removed,
    replaced_folder,
    swept,
    write_model,
)
from llamafarm_tuners.pytorch.card import model_card


def checkpoints(tmp_path, trained, limit=None) -> Checkpoints:
    return Checkpoints(tmp_path, trained, limit, lambda step: {"global_step": step})


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_card_is_written_once_and_peft_writes_its_own_elsewhere(tmp_path, trained, monkeypatch):
    seen = []
    real = type(trained.model).create_or_update_model_card
    monkeypatch.setattr(type(trained.model), "create_or_update_model_card", lambda *_: seen.append(1))
    (tmp_path / "ours").mkdir()
    write_model(trained, tmp_path / "ours")
    assert not seen
    assert (tmp_path / "ours" / "README.md").read_text() == model_card(
        trained.base_name, trained.facts, trained.adapter_kind
    )
    monkeypatch.setattr(type(trained.model), "create_or_update_model_card", real)
    trained.model.save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "README.md").is_file()


def test_a_checkpoint_is_a_complete_adapter_folder(tmp_path, trained):
    path = checkpoints(tmp_path, trained).save(3, None)
    assert names(tmp_path) == ["checkpoint-3"]
    assert set(names(path)) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "llamafarm_checkpoint.json",
        "llamafarm_methods.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
    }
    config = json.loads((path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["base_model_name_or_path"] == trained.base
    assert trained.base not in (path / "README.md").read_text()


def test_saving_never_asks_the_hub_about_the_base(tmp_path, trained, monkeypatch):
    from peft.utils import save_and_load

    def ask(*_, **__):
        raise AssertionError("it asked")

    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", ask)
    write_model(replace(trained, base="owner/name"), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "owner/name"


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, trained, monkeypatch):
    made = checkpoints(tmp_path, trained)
    path = made.save_best(1)
    weights = (path / "adapter_model.safetensors").read_bytes()

    def write_half() -> None:
        with replaced_folder(path) as temporary:
            (temporary / "adapter_model.safetensors").write_bytes(b"half")
            raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        write_half()
    assert (path / "adapter_model.safetensors").read_bytes() == weights
    assert names(tmp_path) == [BEST]


def test_a_full_disk_is_an_error_of_ours(tmp_path):
    with pytest.raises(DiskError, match=r"No space left.*LF-DISK-010"), merged_into(tmp_path):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


def test_a_weight_that_is_not_finite_is_never_written(tmp_path, trained):
    next(p for p in trained.model.parameters() if p.requires_grad).data[0, 0] = float("nan")
    with pytest.raises(NumericError, match="LF-NUMERIC-003"):
        checkpoints(tmp_path, trained).save(1, None)
    assert names(tmp_path) == []


def test_a_whole_model_names_no_folder_of_this_machine(tmp_path, full, tiny_model_dir):
    write_model(full, tmp_path)
    texts = [file.read_text() for file in tmp_path.iterdir() if file.suffix in (".json", ".md", ".jinja")]
    assert len(texts) >= 5
    assert not any(str(tiny_model_dir("llama")) in text for text in texts)


def test_cards():
    card = model_card("owner/name", {"method": "ia3 + bos-scaling", "train_loss": 1.5}, "ia3")
    assert "base_model: owner/name" in card
    assert "library_name: peft" in card
    assert "- train loss: 1.5" in card
    assert "- ia3" in card
    assert "base_model" not in model_card("my-model", {"method": "lora"}, "lora")
    assert "library_name: transformers" in model_card("owner/name", {"method": "freeze"})


@pytest.fixture
def disk(monkeypatch):
    """What happens to a disk, in order: what is had on it, and what gets another name."""
    events, fsync = [], os.fsync

    def recorded_fsync(descriptor):
        events.append(("on disk", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def recorded(original):
        def call(source, target, *rest, **named):
            events.append((Path(target).name, Path(source).stat().st_ino))
            original(source, target, *rest, **named)

        return call

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    for how in ("rename", "replace"):
        monkeypatch.setattr(os, how, recorded(getattr(os, how)))
    return events


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_is_on_disk_with_all_its_files_before_it_has_its_name_and_then_its_name_is(tmp_path, disk, there):
    folder = tmp_path / "result"
    if there:
        folder.mkdir()
        (folder / "old").write_text("old")
    with replaced_folder(folder) as temporary:
        (temporary / "a").write_text("a")
        (temporary / "b").write_text("b")
        assert names(tmp_path) == [temporary.name, *(["result"] if there else [])]
        assert temporary.name.startswith(".writing-"), "a name that the next run clears"
        disk.clear()
    assert names(tmp_path) == ["result"]
    assert names(folder) == ["a", "b"]
    assert folder.stat().st_mode & 0o777 == 0o755, "as any other folder"
    number = folder.stat().st_ino
    named = disk.index(("result", number))
    before, after = disk[:named], disk[named + 1 :]
    for path in (folder, folder / "a", folder / "b"):
        assert ("on disk", path.stat().st_ino) in before
    assert after == [("on disk", tmp_path.stat().st_ino)]


def test_a_run_that_is_killed_while_it_replaces_a_folder_loses_neither(tmp_path, monkeypatch):
    """The old one is put back by the next, which clears the new one."""
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "old").write_text("old")
    rename, count = os.rename, []

    def killed(source, target, *rest, **named):
        count.append(target)
        if len(count) == 2:
            raise KeyboardInterrupt
        rename(source, target, *rest, **named)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt), replaced_folder(tmp_path / "result") as temporary:
        (temporary / "new").write_text("new")
    monkeypatch.setattr(os, "rename", rename)
    assert not (tmp_path / "result").exists()
    swept(tmp_path)
    assert names(tmp_path) == ["result"]
    assert names(tmp_path / "result") == ["old"]


def test_a_folder_deeper_than_what_is_there_is_made(tmp_path):
    with replaced_folder(tmp_path / "deep" / "er" / "result") as temporary:
        (temporary / "a").write_text("a")
    assert names(tmp_path / "deep" / "er") == ["result"]


@pytest.mark.parametrize("written", [replaced_folder, merged_into])
def test_what_cannot_be_written_is_an_error_of_ours_and_leaves_nothing(tmp_path, written):
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "mine").write_text("mine")
    message = r"cannot write result: No space left on device;.*LF-DISK-010"

    def fail_half_way() -> None:
        with written(tmp_path / "result") as temporary:
            (temporary / "half").write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DiskError, match=message):
        fail_half_way()
    assert names(tmp_path) == ["result"]
    assert names(tmp_path / "result") == ["mine"]


def test_files_are_merged_into_a_folder_that_has_others(tmp_path, disk):
    (tmp_path / "a").write_text("old")
    (tmp_path / "mine").write_text("mine")
    with merged_into(tmp_path) as temporary:
        (temporary / "a").write_text("new")
        (temporary / "b").write_text("b")
        assert (tmp_path / "a").read_text() == "old"
        disk.clear()
    assert names(tmp_path) == ["a", "b", "mine"]
    assert (tmp_path / "a").read_text() == "new"
    numbers = {name: (tmp_path / name).stat().st_ino for name in "ab"}
    named = [disk.index((name, numbers[name])) for name in "ab"]
    assert max(disk.index(("on disk", number)) for number in numbers.values()) < named[0] < named[1]
    assert disk[-1] == ("on disk", tmp_path.stat().st_ino)


def test_clearing_up_takes_what_was_half_written_and_nothing_else(tmp_path):
    for name in (".writing-a", ".old-b", ".old-c", ".git", "writing-d", "result"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / ".old-b" / "file").rename(tmp_path / ".old-b" / "result")  # which has been replaced
    (tmp_path / ".old-c" / "file").rename(tmp_path / ".old-c" / "lost")  # which has not
    for name in (".trainer_state.json.7.part", "mine.part", ".hidden", "file"):
        (tmp_path / name).write_text(name)
    swept(tmp_path)
    assert names(tmp_path) == [".git", ".hidden", "file", "lost", "mine.part", "result", "writing-d"]
    assert (tmp_path / "lost").read_text() == ".old-c"
    assert (tmp_path / "result" / "file").read_text() == "result"


def test_a_folder_that_is_removed_is_never_there_by_half(tmp_path, monkeypatch, disk):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "file").write_text("x")
    number = folder.stat().st_ino
    monkeypatch.setattr("llamafarm_tuners.pytorch._store.shutil.rmtree", lambda *_, **__: disk.append("removing"))
    removed(folder)
    assert disk == [("checkpoint-1", number), ("on disk", tmp_path.stat().st_ino), "removing"]
    (left,) = names(tmp_path)
    monkeypatch.undo()
    assert left.startswith(".writing-"), "had it been killed here, the next run would clear it"
    swept(tmp_path)
    assert names(tmp_path) == []


def test_what_cannot_be_removed_ends_nothing(tmp_path, monkeypatch):
    """It has another name by then; the next run tries again."""
    for name in ("checkpoint-1", "result", ".writing-a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_text("old")
    unlink = os.unlink

    def refuse(path, *rest, **named):
        if Path(path).name == "old":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        unlink(path, *rest, **named)

    monkeypatch.setattr(os, "unlink", refuse)
    removed(tmp_path / "checkpoint-1")
    with replaced_folder(tmp_path / "result") as temporary:
        (temporary / "new").write_text("new")
    swept(tmp_path)
    assert names(tmp_path / "result") == ["new"]
    assert not (tmp_path / "checkpoint-1").exists()
    monkeypatch.undo()
    swept(tmp_path)
    assert names(tmp_path) == ["result"]


def test_removing_leaves_nothing(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "file").write_text("x")
    removed(tmp_path / "checkpoint-1")
    assert names(tmp_path) == []


def test_files_get_a_second_name_or_are_copied(tmp_path, monkeypatch):
    for name in ("linked", "copied"):
        (tmp_path / name).mkdir()
    for name in "ab":
        (tmp_path / name).write_text(name)
    files = [tmp_path / "a", tmp_path / "b"]
    link_files(files, tmp_path / "linked")
    assert all((tmp_path / "linked" / file.name).samefile(file) for file in files)

    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)  # as file systems that have no second names
    link_files(files, tmp_path / "copied")
    assert not any((tmp_path / "copied" / file.name).samefile(file) for file in files)
    assert [(tmp_path / "copied" / name).read_text() for name in "ab"] == ["a", "b"]


def test_an_adapter_is_written_as_others_read_it(tmp_path, trained):
    config = trained.model.peft_config["default"]
    config.modules_to_save = {"lm_head", "a", "b"}
    write_model(trained, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["modules_to_save"] == ["a", "b", "lm_head"]
    assert written["target_modules"] == ["q_proj", "v_proj"]
    assert not (tmp_path / VOCABULARY_FILE).exists(), "nothing was added"
    assert "library_name: peft" in (tmp_path / "README.md").read_text()
    from safetensors import safe_open

    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as tensors:
        assert all("lora_" in name for name in tensors.keys())  # noqa: SIM118  # it is no mapping


def test_patterns_of_an_adapter_stay_as_they_are(tmp_path, trained):
    trained.model.peft_config["default"].target_modules = ".*[qv]_proj"
    write_model(trained, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == ".*[qv]_proj"


def test_an_adapter_is_written_with_its_tokens_where_the_vocabulary_grew(tmp_path, trained, monkeypatch):
    """Without looking into the embeddings, whose rows would all be saved."""
    from llamafarm_tuners.pytorch import _store

    told = []
    monkeypatch.setattr(_store, "write_additions", lambda folder, model: told.append((folder, model)))
    write_model(trained, tmp_path)
    assert told == [(tmp_path, trained.model)]


class Written(Lora):
    """Notes when it is told that its model was written."""

    def written(self, model: nn.Module, folder) -> None:
        (folder / "noted").write_text(" ".join(names(folder)))


def test_methods_are_told_when_all_is_written_and_written_down(tmp_path, trained):
    write_model(replace(trained, methods=(Written(Lora.Config()),)), tmp_path)
    assert "llamafarm_methods.json" in (tmp_path / "noted").read_text()
    assert json.loads((tmp_path / "llamafarm_methods.json").read_text())["methods"][0]["type"] == "lora"


class Beside(Lora):
    """Stands for one that is combined with others."""

    stacks = True


def test_what_is_saved_has_a_kind(trained, full):
    lora, beside = Lora(Lora.Config()), Beside(Lora.Config())
    assert (trained.is_adapter, full.is_adapter) == (True, False)
    assert replace(trained, methods=(lora,)).adapter_kind == lora.adapter().kind != "adapter"
    assert replace(trained, methods=(beside, lora)).adapter_kind == lora.adapter().kind
    assert replace(trained, methods=(beside,)).adapter_kind == "adapter"
    assert trained.adapter_kind == "adapter"
    assert replace(full, methods=(lora,)).adapter_kind == ""


def test_a_whole_model_is_written_as_others_read_it(tmp_path, full):
    full.model.config._name_or_path = "/private/model"
    write_model(full, tmp_path)
    assert "library_name: transformers" in (tmp_path / "README.md").read_text()
    config = json.loads((tmp_path / "config.json").read_text())
    assert "_name_or_path" not in config
    assert config["model_type"] == "llama"
    assert (tmp_path / "tokenizer.json").is_file()


def test_frozen_weights_are_not_looked_at(tmp_path, trained):
    """A base that came with odd values trains as it always did; they are not saved."""
    next(p for p in trained.model.parameters() if not p.requires_grad).data[0, 0] = float("inf")
    write_model(trained, tmp_path)
    name = next(name for name, p in trained.model.named_parameters() if p.requires_grad)
    trained.model.get_parameter(name).data[0, 0] = torch.inf
    with pytest.raises(NumericError, match=f"the weight {name} is not finite"):
        write_model(trained, tmp_path)


def test_a_tokenizer_that_cannot_be_written_is_an_error_of_the_disk(tmp_path, trained, monkeypatch):
    def refuse(folder):
        raise Exception("No space left on device (os error 28)")  # noqa: TRY002  # as tokenizers does

    monkeypatch.setattr(trained.tokenizer, "save_pretrained", refuse)
    with pytest.raises(DiskError, match="No space left"):
        checkpoints(tmp_path, trained).save(1, None)
    assert names(tmp_path) == []


def test_an_adapter_that_lost_every_rank_of_a_layer_is_written_without_a_warning(tmp_path, trained):
    """As AdaLoRA leaves some; a warning is an error here."""
    name, matrix = next((name, p) for name, p in trained.model.named_parameters() if "lora_A" in name)
    matrix.data = matrix.data[:0]
    write_model(trained, tmp_path)
    from safetensors.torch import load_file

    assert load_file(tmp_path / "adapter_model.safetensors")[name.replace(".default", "")].shape[0] == 0
