"""What LLaMA-Factory's own keys make of a model, as it loads it itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from llamafarm.api import DeviceSpec, RunPlan
from llamafarm_tuners.llamafactory.config import LlamaFactoryConfig
from llamafarm_tuners.llamafactory.environment import child_environment
from llamafarm_tuners.llamafactory.rows import Form
from llamafarm_tuners.llamafactory.translate import translate

LOAD = Path(__file__).with_name("_loaded.py")


@pytest.fixture
def load(backend, tmp_path):
    """A function: keys → name of each parameter → its dtype, and whether it is trained."""

    def run(**keys):
        config = LlamaFactoryConfig.model_validate({"base_model": {"huggingface_id": "builtin:tiny"}, **keys})
        plan = RunPlan("t", (), DeviceSpec("cpu", "a CPU"), tmp_path, (), {})
        told = translate(config, plan, form=Form(), held_out=False, data=tmp_path, output=tmp_path / "out")
        (tmp_path / "a.json").write_text(json.dumps(told))
        command = [str(backend.python), str(LOAD), str(tmp_path / "a.json"), str(tmp_path / "b.json")]
        environment = child_environment(backend.python, {}, hub=False, one_gpu=False)
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads((tmp_path / "b.json").read_text())

    return run


def test_upcast_layernorm_and_lora_target_all(load):
    found = load(finetuning_type="lora", lora_target="all", upcast_layernorm=True, training={"bf16": True})
    assert {dtype for name, (dtype, _) in found.items() if "norm" in name} == {"torch.float32"}
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, (_, trained) in found.items() if trained}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_two_targets(load):
    found = load(finetuning_type="lora", lora_target="q_proj,v_proj")
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, (_, trained) in found.items() if trained}
    assert adapted == {"q_proj", "v_proj"}


@pytest.mark.parametrize(("count", "layers"), [(2, {"3", "4"}), (-2, {"0", "1"})])
def test_freeze(load, count, layers):
    found = load(finetuning_type="freeze", freeze_trainable_layers=count, freeze_trainable_modules="mlp,self_attn")
    trained = [name for name, (_, learns) in found.items() if learns]
    assert {name.split(".")[2] for name in trained} == layers
    assert {name.split(".")[3] for name in trained} == {"mlp", "self_attn"}


def test_freeze_with_a_module_outside_the_layers(load):
    found = load(finetuning_type="freeze", freeze_trainable_layers=1, freeze_extra_modules="norm")
    assert "model.norm.weight" in {name for name, (_, learns) in found.items() if learns}
