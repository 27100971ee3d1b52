from __future__ import annotations

import json
from dataclasses import replace

import peft
import pytest
import torch

from llamafarm.api import BaseModelConfig
from llamafarm.errors import DiskError, NumericError
from llamafarm.models._load import load_model, load_tokenizer
from llamafarm_tuners.pytorch._checkpoints import BEST, Checkpoints, restore
from llamafarm_tuners.pytorch._store import Trained, merged_into, replaced_folder, write_model
from llamafarm_tuners.pytorch.card import model_card


@pytest.fixture
def trained(tiny_model_dir) -> Trained:
    folder = str(tiny_model_dir("llama"))
    config = BaseModelConfig(huggingface_id=folder)
    model = load_model(config, dtype=torch.float32)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["v_proj", "q_proj"], init_lora_weights=False)
    return Trained(peft.get_peft_model(model, lora), load_tokenizer(config), folder, "llama", {"method": "lora"})


@pytest.fixture
def full(tiny_model_dir) -> Trained:
    config = BaseModelConfig(huggingface_id=str(tiny_model_dir("llama")))
    return Trained(load_model(config, dtype=torch.float32), load_tokenizer(config), "x", "x", {"method": "full"})


def checkpoints(tmp_path, trained, limit=None) -> Checkpoints:
    return Checkpoints(tmp_path, trained, limit, lambda step: {"global_step": step})


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_is_a_complete_adapter_folder(tmp_path, trained):
    path = checkpoints(tmp_path, trained).save(3, None)
    assert names(tmp_path) == ["checkpoint-3"]
    assert set(names(path)) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "llamafarm_methods.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
    }
    config = json.loads((path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["base_model_name_or_path"] == trained.base
    assert trained.base not in (path / "README.md").read_text()


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
    restore(subject.model, path)
    after = subject.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


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
