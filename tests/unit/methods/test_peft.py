from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from llamafarm.api import BaseModelConfig
from llamafarm.errors import ModelError
from llamafarm.models._load import load_model
from llamafarm.testing.run_context import RecordingRun
from llamafarm_methods.config import LoraConfig
from llamafarm_methods.full import Full
from llamafarm_methods.lora import Lora

LINEAR = {
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "qwen2": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "mistral": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "gemma": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
}


@pytest.fixture
def model(request, tiny_model_dir):
    architecture = getattr(request, "param", "llama")
    return load_model(BaseModelConfig(huggingface_id=str(tiny_model_dir(architecture))), dtype=torch.float32)


@pytest.fixture
def run(tmp_path: Path) -> RecordingRun:
    return RecordingRun(tmp_path)


def adapted_names(model) -> set[str]:
    return {name.rpartition(".")[2] for name in model.base_model.targeted_module_names}


@pytest.mark.parametrize(("model", "expected"), LINEAR.items(), indirect=["model"])
def test_auto_takes_every_linear_layer_but_the_head(model, expected, run):
    assert adapted_names(Lora(LoraConfig()).apply(model, run)) == expected


def test_options_reach_peft(model, run):
    config = LoraConfig(r=4, alpha=6, dropout=0.25, use_rslora=True, init_lora_weights="gaussian", bias="lora_only")
    made = Lora(config).apply(model, run).peft_config["default"]
    assert (made.r, made.lora_alpha, made.lora_dropout, made.use_rslora) == (4, 6, 0.25, True)
    assert (made.init_lora_weights, made.bias) == ("gaussian", "lora_only")


def test_shapes_and_identity_at_the_start(model, run):
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        before = model(ids).logits
    adapted = Lora(LoraConfig(r=3, target_modules="q_proj")).apply(model, run).eval()
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.lora_A.default.weight.shape == (3, 64)
    assert layer.lora_B.default.weight.shape == (64, 3)
    assert layer.scaling["default"] == 2
    with torch.inference_mode():
        assert torch.equal(adapted(ids).logits, before)


def test_only_adapters_are_trained(model, run):
    adapted = Lora(LoraConfig()).apply(model, run)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


def test_chosen_layers_only(model, run):
    config = LoraConfig(layers_to_transform=[1], layers_pattern="layers", target_modules="q_proj v_proj")
    names = Lora(config).apply(model, run).base_model.targeted_module_names
    assert sorted(names) == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]


@pytest.mark.parametrize("options", [{"layers_to_transform": [7]}, {"layers_to_transform": [0], "layers_pattern": "h"}])
def test_layers_that_do_not_exist_are_refused(model, run, options):
    with pytest.raises(ModelError, match="LF-MODEL-021"):
        Lora(LoraConfig(**options)).apply(model, run)


@pytest.mark.parametrize(
    ("model", "targets"), [("phi3", "q_proj v_proj"), ("phi3", "q_proj,o_proj")], indirect=["model"]
)
def test_names_of_another_architecture_are_refused_even_in_part(model, targets, run):
    with pytest.raises(ModelError, match="down_proj, gate_up_proj, lm_head, o_proj, qkv_proj"):
        Lora(LoraConfig(target_modules=targets)).apply(model, run)


@pytest.mark.parametrize("model", ["llama", "gemma"], indirect=True)
def test_modules_to_save_are_trained_whole(model, run):
    adapted = Lora(LoraConfig(modules_to_save=["embed_tokens", "lm_head"], target_modules="q_proj")).apply(model, run)
    whole = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad and "lora_" not in name}
    assert whole
    assert all("modules_to_save" in name for name in whole)


def test_a_module_to_save_that_does_not_exist_is_refused(model, run):
    with pytest.raises(ModelError, match=r"did you mean 'embed_tokens'\? \[LF-MODEL-022\]"):
        Lora(LoraConfig(modules_to_save=["embed_token"])).apply(model, run)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("model", ["gpt_neox"], indirect=True)
def test_biases_are_trained_as_asked(model, bias, run):
    adapted = Lora(LoraConfig(bias=bias, target_modules="dense")).apply(model, run)
    biases = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad and "bias" in name}
    assert run.events == []
    everywhere = {name for name, _ in adapted.named_parameters() if name.endswith("bias")}
    if bias == "lora_only":
        assert biases
        assert all("attention.dense" in name for name in biases)
    else:
        assert biases == (everywhere if bias == "all" else set())


@pytest.mark.parametrize(("bias", "of"), [("all", "the model has"), ("lora_only", "the adapted layers have")])
@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_biases_that_are_not_there_are_said(model, bias, of, run):
    Lora(LoraConfig(bias=bias)).apply(model, run)
    (event,) = run.events
    assert (event.type, event.fields["message"]) == ("warning", f"bias: {bias} has no effect: {of} no biases")


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "olora", "pissa", "pissa_niter_4", False])
def test_other_beginnings_leave_the_model_about_as_it_was(model, init, run):
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        before = model(ids).logits
        after = Lora(LoraConfig(init_lora_weights=init)).apply(model, run).eval()(ids).logits
    assert torch.allclose(before, after, atol=1e-4) == (init is not False)


@pytest.mark.parametrize(
    ("options", "warned"), [({"alpha": 65}, True), ({}, False), ({"alpha": 65, "use_rslora": True}, False)]
)
def test_a_large_scale_is_warned_of(model, options, warned, run):
    Lora(LoraConfig(**options)).apply(model, run)
    assert [event.type for event in run.events] == ["warning"] * warned


def test_transposed_layers_are_adapted(run):
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50))
    adapted = Lora(LoraConfig()).apply(model, run)
    assert adapted_names(adapted) == {"c_attn", "c_proj", "c_fc"}
    assert adapted.peft_config["default"].fan_in_fan_out


def test_weights_that_are_quantized_cannot_be_taken_apart(model, run):
    model.is_quantized = True
    with pytest.raises(ModelError, match="LF-MODEL-023"):
        Lora(LoraConfig(init_lora_weights="pissa")).apply(model, run)


def test_full_trains_everything(model, run):
    model.requires_grad_(False)
    assert all(parameter.requires_grad for parameter in Full(Full.Config()).apply(model, run).parameters())
