"""BOFT's rotations in torch, and p-tuning's network, where PEFT alone does not suffice."""

from __future__ import annotations

import pytest
import torch
from method_steps import apply, load, logits, saved_and_loaded, train, trained
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.autograd import gradcheck

from llamafarm.errors import ModelError
from llamafarm.export._merge import merge
from llamafarm.models._adapter import blocks_without_compiling
from llamafarm_methods.bridged import Boft, PTuning


def test_blocks_on_a_diagonal_are_those_of_torch_and_so_is_their_gradient():
    from peft.tuners.boft.layer import FastBlockDiag

    blocks_without_compiling()
    blocks = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([torch.block_diag(*some) for some in blocks])
    assert torch.equal(FastBlockDiag.apply(blocks), expected)
    assert gradcheck(FastBlockDiag.apply, blocks.requires_grad_())


def test_several_rotations_are_taken_and_none_is_dropped(tiny_model_dir, tmp_path):
    """Each is orthogonal, over blocks of other neighbours: together they mix more inputs than one block has."""
    method = Boft(Boft.Config(boft_block_size=4, boft_n_butterfly_factor=3, target_modules="q_proj"))
    adapted = apply(method, load(tiny_model_dir("llama")), tmp_path)
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.boft_R["default"].shape == (3, 16, 4, 4)
    torch.nn.init.normal_(layer.boft_R["default"], generator=torch.Generator().manual_seed(0))
    rotation, _ = layer.get_delta_weight("default")
    assert torch.allclose(rotation @ rotation.T, torch.eye(64), atol=1e-5)
    assert (rotation.abs() > 1e-6).sum(dim=1).max() > 4
    x = torch.randn(3, 64)
    scale = layer.boft_s["default"].squeeze(1)
    expected = (x @ rotation) @ layer.base_layer.weight.T * scale
    assert torch.allclose(layer(x), expected, atol=1e-4)


def test_permutations_are_kept_once(tiny_model_dir, tmp_path):
    method, base = Boft(Boft.Config(boft_n_butterfly_factor=2)), tiny_model_dir("llama")
    adapted = apply(method, load(base), tmp_path)
    loaded = saved_and_loaded(adapted, method, base, tmp_path / "saved")
    for model in (adapted, loaded):
        kept = {id(module.boft_P) for module in model.modules() if hasattr(module, "boft_P")}
        assert len(kept) == 2, "layers of 64 and of 128 inputs"
        assert not [name for name, _ in model.named_buffers() if "boft" in name]


@pytest.mark.parametrize("given", [{"boft_block_size": 0}, {"boft_block_num": 4}])
def test_blocks_have_one_size(given):
    with pytest.raises(ValidationError, match="give boft_block_size or boft_block_num"):
        Boft.Config(**given)


@pytest.mark.parametrize("kind", ["MLP", "LSTM"])
def test_the_network_is_saved_beside_the_prompt_that_it_makes(kind, tiny_model_dir, tmp_path):
    options = {"num_virtual_tokens": 3, "encoder_reparameterization_type": kind, "encoder_hidden_size": 20}
    method, base = PTuning(PTuning.Config(**options)), tiny_model_dir("llama")
    adapted = apply(method, load(base), tmp_path)
    losses = train(adapted, steps=8)
    assert losses[-1] < losses[0]
    after = logits(adapted)
    loaded = saved_and_loaded(adapted, method, base, tmp_path / "saved")
    assert torch.allclose(logits(loaded), after, atol=1e-6)
    saved = load_file(tmp_path / "saved/prompt_encoder.safetensors")
    learned = trained(adapted)
    assert saved.keys() == learned.keys()
    assert all(torch.equal(saved[name], parameter) for name, parameter in learned.items())
    assert load_file(tmp_path / "saved/adapter_model.safetensors").keys() == {"prompt_embeddings"}


def test_a_prompt_is_not_merged_and_the_reason_is_its_own(tiny_model_dir, tmp_path):
    method = PTuning(PTuning.Config(num_virtual_tokens=3))
    adapted = apply(method, load(tiny_model_dir("llama")), tmp_path)
    with pytest.raises(ModelError, match=r"p-tuning cannot be merged: it is put before each row.*LF-MODEL-117"):
        merge(adapted, [method])


def test_layers_of_an_lstm_are_not_those_of_an_mlp():
    assert PTuning.Config(encoder_reparameterization_type="LSTM", encoder_num_layers=3).encoder_num_layers == 3
    with pytest.raises(ValidationError, match="no effect on an MLP"):
        PTuning.Config(encoder_num_layers=3)
