"""Options that choose: tiers, patterns, layers to leave out, tokens, what is refused."""

from __future__ import annotations

import pytest
import torch
from method_steps import apply, load, train, trained
from pydantic import ValidationError
from transformers import GPT2Config, GPT2LMHeadModel

from llamafarm.errors import ModelError
from llamafarm.testing.run_context import RecordingRun
from llamafarm_methods.config import DoraConfig, LoraConfig
from llamafarm_methods.lora import Lora

QKV = {
    "llama": ({"q_proj", "v_proj"}, {"q_proj", "k_proj", "v_proj"}),
    "phi3": ({"qkv_proj"}, {"qkv_proj"}),
    "gpt_neox": ({"query_key_value"}, {"query_key_value"}),
}


def leaves(adapted):
    return {name.rpartition(".")[2] for name in adapted.base_model.targeted_module_names}


@pytest.mark.parametrize("architecture", QKV)
def test_tiers_adapt_more_and_more(architecture, tiny_model_dir, tmp_path):
    found, counts = [], []
    for tier in ("conservative", "balanced", "aggressive", "all-linear"):
        adapted = apply(Lora(LoraConfig(target_modules=tier)), load(tiny_model_dir(architecture)), tmp_path)
        found.append(leaves(adapted))
        counts.append(sum(parameter.numel() for parameter in trained(adapted).values()))
    assert (found[0], found[1]) == QKV[architecture]
    assert counts[0] <= counts[1] < counts[2] == counts[3]
    assert (counts[0] < counts[1]) == (architecture == "llama")


def test_a_tier_on_transposed_layers(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50))
    assert leaves(apply(Lora(LoraConfig(target_modules="conservative")), model, tmp_path)) == {"c_attn"}


def test_a_tier_on_unknown_names_lists_what_there_is(tiny_model_dir, tmp_path):
    model = load(tiny_model_dir("llama"))
    for layer in model.model.layers:
        del layer.self_attn
    with pytest.raises(ModelError, match=r"down_proj, gate_proj, up_proj.*LF-MODEL-071"):
        apply(Lora(LoraConfig(target_modules="balanced")), model, tmp_path)


def test_each_rank_has_its_scale(tiny_model_dir, tmp_path):
    config = LoraConfig(r=8, rank_pattern={"down_proj": 2, r"layers\.1\..*q_proj": 4}, alpha_pattern={"down_proj": 6})
    adapted = apply(Lora(config), load(tiny_model_dir("llama")), tmp_path)
    found = {
        name.removeprefix("model.layers."): (
            adapted.base_model.model.get_submodule(name).r["default"],
            adapted.base_model.model.get_submodule(name).scaling["default"],
        )
        for name in adapted.base_model.targeted_module_names
    }
    assert found["0.mlp.down_proj"] == found["1.mlp.down_proj"] == (2, 3)
    assert found["1.self_attn.q_proj"] == (4, 2), "alpha is twice the rank where it is not given"
    assert found["0.self_attn.q_proj"] == (8, 2)
    fixed = apply(Lora(LoraConfig(r=8, alpha=8, rank_pattern={"q_proj": 2})), load(tiny_model_dir("llama")), tmp_path)
    assert fixed.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] == 4, "alpha is as given"


@pytest.mark.parametrize("option", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_matches_nothing_is_refused(option, tiny_model_dir, tmp_path):
    with pytest.raises(ModelError, match=rf"{option} 'down_prj'.*did you mean 'down_proj'"):
        apply(Lora(LoraConfig(**{option: {"down_prj": 2}})), load(tiny_model_dir("llama")), tmp_path)
    with pytest.raises(ValidationError, match="give each name a value of its own"):
        LoraConfig(**{option: {"q_proj, v_proj": 2}})


def test_layers_are_left_out_by_name_or_pattern(tiny_model_dir, tmp_path):
    for given, gone in (
        ("down_proj, up_proj", {"down_proj", "up_proj"}),
        (r"mlp\..*", {"down_proj", "up_proj", "gate_proj"}),
    ):
        adapted = apply(Lora(LoraConfig(exclude_modules=given)), load(tiny_model_dir("llama")), tmp_path)
        assert leaves(adapted).isdisjoint(gone)
        assert leaves(adapted) | gone >= {"q_proj", "o_proj", "gate_proj"}
    with pytest.raises(ModelError, match="exclude_modules 'q_prj'"):
        apply(Lora(LoraConfig(exclude_modules="q_prj")), load(tiny_model_dir("llama")), tmp_path)
    everything = LoraConfig(target_modules="q_proj", exclude_modules="q_proj")
    with pytest.raises(ModelError, match="LF-MODEL-072"):
        apply(Lora(everything), load(tiny_model_dir("llama")), tmp_path)


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt_neox"])
def test_only_the_named_tokens_learn(architecture, tiny_model_dir, tmp_path):
    model = load(tiny_model_dir(architecture))
    embedding = model.get_input_embeddings().weight.clone()
    adapted = apply(Lora(LoraConfig(trainable_token_indices=[20, 3])), model, tmp_path)
    train(adapted)
    merged = adapted.merge_and_unload().get_input_embeddings().weight
    moved = (merged != embedding).any(1).nonzero().flatten().tolist()
    assert moved in ([20], [3, 20]), "3 is not in the rows, so that it may learn only as an output"


def test_tokens_that_do_not_fit_are_refused(tiny_model_dir, tmp_path):
    with pytest.raises(ModelError, match=r"\[100000\].*numbered from 0.*LF-MODEL-070"):
        apply(Lora(LoraConfig(trainable_token_indices=[5, 100000])), load(tiny_model_dir("llama")), tmp_path)
    both = LoraConfig(trainable_token_indices=[5], modules_to_save="embed_tokens")
    with pytest.raises(ModelError, match="LF-MODEL-073"):
        apply(Lora(both), load(tiny_model_dir("llama")), tmp_path)


@pytest.mark.parametrize(("init", "reason"), [("lora_ga", "gradients of the whole base"), ("mica", "expected true")])
def test_beginnings_that_are_not_offered_are_refused(init, reason):
    with pytest.raises(ValidationError, match=reason):
        LoraConfig(init_lora_weights=init)


def test_the_norm_in_the_gradient_is_refused():
    with pytest.raises(ValidationError):
        DoraConfig(dora_simple=False)
    with pytest.raises(ValidationError, match="use true or gaussian"):
        DoraConfig(magnitude_only_modules="q_proj", init_lora_weights="pissa")


def test_rank_stabilized_scale(tiny_model_dir, tmp_path):
    adapted = apply(Lora(LoraConfig(r=4, alpha=6, use_rslora=True)), load(tiny_model_dir("llama")), tmp_path)
    assert adapted.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] == pytest.approx(6 / 4**0.5)


def test_a_randomized_beginning_leaves_other_random_numbers_alone(tiny_model_dir, tmp_path):
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = torch.rand(3)
        torch.manual_seed(seed)
        config = LoraConfig(init_lora_weights="pissa_niter_2", target_modules="q_proj")
        adapted = Lora(config).apply(load(tiny_model_dir("llama")), RecordingRun(tmp_path))
        made.append(adapted.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight)
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(*made)
