"""Ways that are meant for GPUs, as far as a machine without one can tell; what a kernel computes is not tested here."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from llamafarm.api import BaseModelConfig
from llamafarm.data.tokens import TokenizedRow
from llamafarm.models._load import load_model
from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch._batches import in_one_row
from llamafarm_tuners.pytorch._loss import token_losses
from llamafarm_tuners.pytorch._offload import ActivationsAway
from llamafarm_tuners.pytorch._stability import repeated_layers
from llamafarm_tuners.pytorch.fast._attention import (
    KERNEL,
    VARIABLE,
    document_attention,
    stand_in,
    variable_length_attention,
)
from llamafarm_tuners.pytorch.fast._install import Wanted, fast_paths

CPU = torch.device("cpu")
ROWS = [TokenizedRow(list(range(5, 5 + size)), list(range(5, 5 + size))) for size in (7, 3, 12)]


@pytest.fixture
def model(tiny_model_dir):
    return load_model(
        BaseModelConfig(huggingface_id=str(tiny_model_dir("llama"))), dtype=torch.float32, attention="sdpa"
    )


def loss_and_gradients(model, away=None):
    with fast_paths(model, ROWS, CPU, RecordingRun(None), Wanted(layers=False, adapters=False)) as paths:
        batch = paths.batch(ROWS, 0)
        if away is None:
            total, _ = token_losses(model, batch, selective=paths.selective, head=paths.head)
        else:
            with away:
                total, _ = token_losses(model, batch, selective=paths.selective, head=paths.head)
        total.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return total.item(), found


def test_activations_that_were_away_give_the_same_gradients_to_the_last_bit(model):
    expected = loss_and_gradients(model)
    away = ActivationsAway(model, smallest=0)
    found = loss_and_gradients(model, away)
    assert away.bytes > 0
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    assert all(torch.equal(found[1][name], gradient) for name, gradient in expected[1].items())


def test_weights_and_small_tensors_stay_where_they_are():
    layer, x = nn.Linear(64, 8), torch.randn(32, 64, requires_grad=True)
    away = ActivationsAway(layer, smallest=0)
    with away:
        layer(x)
    assert away.bytes == x.nbytes, "the input is kept for the weight's gradient; the weight for the input's stays"
    away = ActivationsAway(layer, smallest=x.nbytes + 1)
    with away:
        layer(x)
    assert away.bytes == 0


def test_what_repeats_its_values_is_not_written_out(model):
    x, factor = torch.randn(1, 64, requires_grad=True), torch.randn(64)
    away = ActivationsAway(model, smallest=0)
    with away:
        (x.exp() * factor.expand(512, 64)).sum().backward()
    assert away.bytes == x.nbytes, "the result of exp; not the factor, 512 times as large as its memory"


def test_one_serves_for_all_passes(model):
    away = ActivationsAway(model, smallest=0)
    first, sent = loss_and_gradients(model, away), away.bytes
    second = loss_and_gradients(model, away)
    assert away.bytes == 2 * sent
    assert first[0] == second[0]


def test_a_tensor_that_was_changed_while_it_was_away_does_not_matter():
    x = torch.randn(64, requires_grad=True)
    y = x * 1.0
    with ActivationsAway(nn.Module(), smallest=0):
        z = y.exp()
    kept = z.detach().clone()
    with torch.no_grad():
        z.zero_()
    z.backward(torch.ones(64))
    assert torch.equal(x.grad, kept)


def test_bounds_stay_in_main_memory_only_for_the_kernel_that_splits_there():
    assert in_one_row(ROWS, stand_in(KERNEL, torch.device("meta"))).split_on_host
    assert not in_one_row(ROWS, stand_in(VARIABLE, torch.device("meta"))).split_on_host
    assert not in_one_row(ROWS).split_on_host, "FlashAttention reads them on the device"
    there = in_one_row(ROWS, stand_in(KERNEL, CPU)).to(torch.device("meta"))
    assert (there.bounds.device.type, there.input_ids.device.type) == ("cpu", "meta")
    assert in_one_row(ROWS).to(torch.device("meta")).bounds.device.type == "meta"


def test_attention_of_variable_length_refuses_what_it_does_not_compute():
    q, k = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    bounds = torch.tensor([0, 2, 6], dtype=torch.int32)
    layer = nn.Module()
    for options in ({"dropout": 0.1}, {"softcap": 30.0}):
        with pytest.raises(NotImplementedError):
            variable_length_attention(layer, q, k, k, None, cu_seq_lens_q=bounds, max_length_q=4, **options)


def test_without_the_flash_kernel_documents_are_computed_one_by_one(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "flash_sdp_enabled", lambda: False)
    q, k = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    named = {"cu_seq_lens_q": torch.tensor([0, 2, 6], dtype=torch.int32), "max_length_q": 4}
    expected, _ = document_attention(nn.Module(), q, k, k, None, **named)
    assert torch.equal(variable_length_attention(nn.Module(), q, k, k, None, **named)[0], expected)


def test_the_layers_of_an_architecture_are_found_through_adapters_too(model):
    import peft

    count = model.config.num_hidden_layers
    assert len(repeated_layers(model)) == count
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    assert len(repeated_layers(adapted)) == count
    assert repeated_layers(nn.Linear(2, 2)) == []


def test_liger_that_does_not_run_leaves_the_model_as_it_was(model):
    """Without a GPU its kernels fail, without the package the import does: either way the run goes on, and says why."""
    run, names = RecordingRun(None), vars(sys.modules[type(model).__module__]).copy()
    with torch.no_grad():
        expected = model(torch.tensor([[5, 6, 7]])).logits
        with fast_paths(
            model, ROWS, CPU, run, Wanted(products=False, layers=False, adapters=False, liger=True)
        ) as paths:
            assert paths.documents
            assert torch.equal(model(torch.tensor([[5, 6, 7]])).logits, expected)
    said = next(event.fields for event in run.events if event.type == "paths")
    assert said["liger_modules"] == 0
    assert said["not_liger"].startswith("they do not run here")
    assert vars(sys.modules[type(model).__module__]) == names


def test_what_liger_replaces_is_put_back(model):
    pytest.importorskip(
        "liger_kernel", reason="made for Linux with GPUs; brings triton, which is not in the tests' extra"
    )
    from llamafarm_tuners.pytorch.fast._liger import liger_kernels

    space = vars(sys.modules[type(model).__module__])
    names, norm = space.copy(), model.model.norm
    own = dict(vars(norm))
    with liger_kernels(model) as modules:
        assert modules == 3 * model.config.num_hidden_layers + 1, "of each layer, and the last norm"
        assert "forward" in vars(norm)
        model.train()
    assert space == names
    assert vars(norm) == own | {"training": True}, "a run that goes on without its kernels goes on training"
