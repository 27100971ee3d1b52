"""Layers with adapters as one step each way, where decoder layers have no faster way: PEFT's results, less to keep."""

from __future__ import annotations

import peft
import pytest
import torch
from fast_oracle import CPU, ROWS, assert_same, both, gradients, load, oracle, ours, paths_of, with_lora

from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch._loss import token_losses
from llamafarm_tuners.pytorch.fast._install import Wanted, fast_paths

ADAPTED = 2 * 4
"""Linear layers of the tiny GPT-NeoX: q, k, v in one, output, up and down."""


def without() -> Wanted:
    return Wanted(adapters=False)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}, {"target_modules": ["dense"]}])
def test_losses_and_gradients_are_those_of_plain_training(tiny_model_dir, options):
    run = RecordingRun(None)
    both(with_lora(load(tiny_model_dir("gpt_neox")), **options).train(), run=run)
    paths = paths_of(run)
    assert (paths["fused_layers"], paths["fused_adapters"]) == (0, 2 if "target_modules" in options else ADAPTED)


def test_in_16_bits(tiny_model_dir):
    # products and what stands between layers have 8 binary digits: some 0.5 % each, a few of them in a row
    model, run = with_lora(load(tiny_model_dir("gpt_neox"), dtype=torch.bfloat16)).train(), RecordingRun(None)
    both(model, relative=3e-2, run=run)
    assert paths_of(run)["fused_adapters"] == ADAPTED


@pytest.mark.parametrize("options", [{}, {"use_dora": True}])
def test_they_drop_what_plain_ones_drop(tiny_model_dir, options):
    """One row without padding draws the same masks in both."""
    model, found = with_lora(load(tiny_model_dir("gpt_neox")), lora_dropout=0.3, **options).train(), []
    for wanted in (without(), Wanted()):
        torch.manual_seed(5)
        found.append((ours(model, [ROWS], wanted), gradients(model)))
    assert_same(*found)
    torch.manual_seed(6)
    assert ours(model, [ROWS]) != pytest.approx(found[1][0], rel=1e-4), "nothing was dropped"


def test_beside_fused_layers_only_what_they_leave(tiny_model_dir):
    run = RecordingRun(None)
    both(with_lora(load(tiny_model_dir("llama"))).train(), run=run)
    assert (paths_of(run)["fused_layers"], paths_of(run)["fused_adapters"]) == (2, 0)
    run = RecordingRun(None)
    both(with_lora(load(tiny_model_dir("llama")), modules_to_save=["input_layernorm"]).train(), run=run)
    assert (paths_of(run)["fused_layers"], paths_of(run)["fused_adapters"]) == (0, 14)


def test_padded_rows_take_them_too(tiny_model_dir):
    run = RecordingRun(None)
    both(with_lora(load(tiny_model_dir("gpt_neox"))).train(), wanted=Wanted(documents=False), run=run)
    assert (paths_of(run)["batches"], paths_of(run)["fused_adapters"]) == ("padded", ADAPTED)


def test_less_is_kept_for_the_way_back(tiny_model_dir):
    def kept(wanted: Wanted) -> int:
        model = with_lora(load(tiny_model_dir("gpt_neox"), dtype=torch.bfloat16), lora_dropout=0.2).train()
        own, sizes = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}, {}

        def note(tensor):
            if tensor.data_ptr() not in own:
                sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with (
            fast_paths(model, ROWS, CPU, RecordingRun(None), wanted) as paths,
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        ):
            token_losses(model, paths.batch(ROWS, 0), selective=paths.selective, head=paths.head)
        return sum(sizes.values())

    assert kept(Wanted()) < 0.7 * kept(without())


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_adapters_that_are_switched_off_or_merged_are(tiny_model_dir, architecture):
    base, model = (
        oracle(load(tiny_model_dir(architecture)), ROWS),
        with_lora(load(tiny_model_dir(architecture))).train(),
    )
    with fast_paths(model, ROWS, CPU, RecordingRun(None)) as paths, torch.no_grad():

        def loss():
            batch = paths.batch(ROWS, 0)
            return token_losses(model, batch, selective=paths.selective, head=paths.head)[0].item()

        on = loss()
        with model.disable_adapter():
            assert loss() == pytest.approx(base, rel=1e-5)
        model.merge_adapter()
        assert loss() == pytest.approx(on, rel=1e-5)
        model.unmerge_adapter()
        assert loss() == pytest.approx(on, rel=1e-5)
    assert on != pytest.approx(base, rel=1e-3)


def test_in_evaluation_peft_computes(tiny_model_dir):
    model, ids = with_lora(load(tiny_model_dir("gpt_neox"))).eval(), torch.tensor([[5, 6, 7, 8, 9]])
    before = model(ids).logits
    with fast_paths(model, ROWS, CPU, RecordingRun(None), Wanted(products=False)) as paths:
        assert not paths.documents or torch.equal(model(ids).logits, before)
        assert not torch.equal(model.train()(ids).logits, before), "they are not there"
        assert torch.equal(model.eval()(ids).logits, before)


def test_everything_is_put_back(tiny_model_dir):
    model = with_lora(load(tiny_model_dir("gpt_neox"))).train()
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with fast_paths(model, ROWS, CPU, RecordingRun(None)):
        assert any("forward" in module.__dict__ for module in model.modules())
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert all(parameter.equal(weights[name]) for name, parameter in model.named_parameters())


def test_other_adapters_stay_as_they_are(tiny_model_dir):
    run = RecordingRun(None)
    both(with_lora(load(tiny_model_dir("gpt_neox")), kasa_config=peft.KasaConfig()).train(), run=run)
    assert paths_of(run)["fused_adapters"] == 0


def test_layers_that_compute_something_else_are_not_taken(tiny_model_dir, monkeypatch):
    from llamafarm_tuners.pytorch.fast._layers import AddedGroup

    right = AddedGroup.apply
    monkeypatch.setattr(AddedGroup, "apply", lambda *given: right(*given) * 1.01)
    run = RecordingRun(None)
    both(with_lora(load(tiny_model_dir("gpt_neox"))).train(), run=run)
    assert paths_of(run)["fused_adapters"] == 0
