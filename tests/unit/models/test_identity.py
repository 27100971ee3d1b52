"""An adapter is refused where it is not what was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llamafarm.api import BaseModelConfig
from llamafarm.errors import ModelError
from llamafarm.evaluation.models import models_to_measure
from llamafarm.models._load import load_for_generation, load_model, load_tokenizer
from llamafarm.models.checkpoint import CHECKPOINT_FILE, write_manifest
from llamafarm.models.identity import base_digest, require_identity
from llamafarm_tuners.pytorch._store import Trained, write_model


@pytest.fixture
def adapter(tiny_model_dir, tmp_path) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model

    base = shutil.copytree(tiny_model_dir("llama"), tmp_path / "base")
    options = BaseModelConfig(huggingface_id=str(base))
    model = get_peft_model(
        load_model(options, dtype=torch.float32), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_model(Trained(model, load_tokenizer(options), str(base), "base"), folder)
    write_manifest(folder, 1, position={}, identity={"base": base_digest(str(base))})
    return folder


def flip(file: Path) -> None:
    """Change one bit in the middle of a file's last kilobyte."""
    content = bytearray(file.read_bytes())
    content[-500] ^= 1
    file.write_bytes(content)


def test_what_was_trained_is_loaded(adapter):
    load_for_generation(str(adapter))


def test_another_base_is_refused(adapter):
    flip(adapter.parent / "base" / "model.safetensors")
    with pytest.raises(ModelError) as refused:
        load_for_generation(str(adapter))
    (problem,) = refused.value.problems
    assert problem.id == "LF-MODEL-190"
    assert refused.value.exit_code == 4
    assert str(adapter.parent / "base") in problem.message
    (adapter / CHECKPOINT_FILE).unlink()
    load_for_generation(str(adapter))  # the documented way on


def test_another_base_is_refused_before_anything_is_measured(adapter):
    assert models_to_measure(str(adapter), "auto", every=False) == [str(adapter.parent / "base"), str(adapter)]
    flip(adapter.parent / "base" / "model.safetensors")
    with pytest.raises(ModelError, match="LF-MODEL-190"):
        models_to_measure(str(adapter), "auto", every=False)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_file_that_is_not_what_was_written_is_refused(adapter, name, how):
    if how == "changed":
        flip(adapter / name) if name != "chat_template.jinja" else (adapter / name).write_text("{{ 1 }}")
    else:
        (adapter / name).unlink()
    with pytest.raises(ModelError) as refused:
        load_for_generation(str(adapter))
    (problem,) = refused.value.problems
    if (name, how) == ("adapter_model.safetensors", "gone"):
        assert problem.id == "LF-MODEL-171"  # no adapter at all: said before anything is compared
        assert "has no weights" in problem.message
        assert name in problem.hint
        return
    assert problem.id == "LF-MODEL-191"
    assert name in problem.message
    assert ("missing" in problem.message) == (how == "gone")


def test_all_that_differs_is_said(adapter):
    flip(adapter.parent / "base" / "model.safetensors")
    flip(adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError) as refused:
        require_identity(adapter, str(adapter.parent / "base"))
    assert [problem.id for problem in refused.value.problems] == ["LF-MODEL-190", "LF-MODEL-191"]


def test_adapters_of_other_tools_are_not_compared(adapter):
    content = json.loads((adapter / CHECKPOINT_FILE).read_text())
    (adapter / CHECKPOINT_FILE).write_text(json.dumps(content | {"version": 99}))
    flip(adapter / "adapter_model.safetensors")
    require_identity(adapter, str(adapter.parent / "base"))


def test_a_base_that_is_not_here_cannot_be_compared(adapter):
    require_identity(adapter, "somebody/nothing-of-this-name")
