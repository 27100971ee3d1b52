from __future__ import annotations

import pytest
import torch
from method_steps import apply, load, logits, saved_and_loaded, train, trained
from torch import nn

from llamafarm.errors import ModelError
from llamafarm.testing.run_context import RecordingRun
from llamafarm_methods.freeze import Freeze, FreezeConfig


def thawed(model, folder, **options):
    return apply(Freeze(FreezeConfig(**options)), model, folder)


def parts(model):
    """The layers with something to train, and what is trained outside of them."""
    names = trained(model)
    layers = {int(name.split("layers.")[1].split(".")[0]) for name in names if "layers." in name}
    return layers, {name for name in names if "layers." not in name}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3", "gpt_neox", "gemma"])
@pytest.mark.parametrize(("wanted", "layers"), [(1, {1}), (-1, {0}), (2, {0, 1}), (-2, {0, 1})])
def test_the_last_layers_or_the_first(architecture, wanted, layers, tiny_model_dir, tmp_path):
    model = thawed(load(tiny_model_dir(architecture)), tmp_path, freeze_trainable_layers=wanted)
    assert parts(model) == (layers, set())
    whole = {name for name, _ in model.named_parameters() if any(f"layers.{n}." in name for n in layers)}
    assert set(trained(model)) == whole


def test_modules_inside_and_outside(tiny_model_dir, tmp_path):
    options = {
        "freeze_trainable_layers": 1,
        "freeze_trainable_modules": "mlp,q_proj",
        "freeze_extra_modules": ["embed_tokens", "norm"],
    }
    model = thawed(load(tiny_model_dir("llama")), tmp_path, **options)
    assert set(trained(model)) == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.1.self_attn.q_proj.weight",
        *(f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    }
    only = thawed(load(tiny_model_dir("llama")), tmp_path, freeze_trainable_layers=0, freeze_extra_modules="lm_head")
    assert set(trained(only)) == {"lm_head.weight"}


def test_only_what_is_thawed_changes_and_the_whole_model_is_saved(tiny_model_dir, tmp_path):
    base, method = tiny_model_dir("qwen2"), Freeze(FreezeConfig(freeze_trainable_layers=1))
    model = apply(method, load(base), tmp_path)
    losses = train(model)
    assert losses[-1] < losses[0]
    after, before = dict(model.named_parameters()), dict(load(base).named_parameters())
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(trained(model))
    assert torch.equal(logits(saved_and_loaded(model, method, base, tmp_path / "saved")), logits(model))


def test_a_tied_embedding_is_told_of(tiny_model_dir, tmp_path):
    run = RecordingRun(tmp_path)
    model = Freeze(FreezeConfig(freeze_extra_modules="embed_tokens")).apply(load(tiny_model_dir("gemma")), run)
    assert "model.embed_tokens.weight" in trained(model)
    assert ["both are trained" in event.fields["message"] for event in run.events] == [True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_trainable_layers": 3}, r"the model has 2 layers \(model\.layers\).*LF-MODEL-076"),
        ({"freeze_trainable_layers": -3}, "LF-MODEL-076"),
        ({"freeze_trainable_layers": 0}, "LF-MODEL-077"),
        ({"freeze_trainable_modules": "mpl"}, r"did you mean 'mlp'.*LF-MODEL-022"),
        (
            {"freeze_extra_modules": "q_proj"},
            r"freeze_extra_modules 'q_proj'.*embed_tokens, lm_head, norm.*LF-MODEL-022",
        ),
    ],
)
def test_what_does_not_exist_is_refused(options, message, tiny_model_dir, tmp_path):
    with pytest.raises(ModelError, match=message):
        thawed(load(tiny_model_dir("llama")), tmp_path, **options)


def test_a_model_without_a_list_of_layers_is_refused(tmp_path):
    with pytest.raises(ModelError, match="LF-MODEL-075"):
        thawed(nn.Sequential(nn.Linear(2, 2)), tmp_path)
