"""Copies of frozen matrices in oneDNN's own order: results to the last bit, and only while and where they may be."""

from __future__ import annotations

import pytest
import torch
from fast_oracle import CPU, ROWS, gradients, load, ours, paths_of, with_lora

from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch.fast import _linear
from llamafarm_tuners.pytorch.fast._install import fast_paths
from llamafarm_tuners.pytorch.fast._linear import ordered_copies, product
from llamafarm_tuners.pytorch.processor import room_for_copies


@pytest.fixture
def room(monkeypatch):
    """Room for copies on any processor that oneDNN knows."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch has no oneDNN here")
    monkeypatch.setattr(_linear, "onednn_pays", lambda: True)
    monkeypatch.setattr(_linear, "_available", lambda: 2**34)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 33, 200, 1500])
def test_products_are_the_same_to_the_last_bit(room, dtype, tokens):
    torch.manual_seed(0)
    weight, bias = torch.randn(192, 96).to(dtype), torch.randn(192).to(dtype)
    x, back = torch.randn(tokens, 96).to(dtype), torch.randn(tokens, 192).to(dtype)
    plain = product(x, weight, bias), product(back, weight.t())
    with ordered_copies([weight]) as taken:
        copies = 1 if dtype == torch.float32 else 2  # in float32 for the way back alone, if no file holds the matrix
        assert taken == copies * weight.nbytes
        assert len(_linear._ordered) == copies
        ordered = product(x, weight, bias), product(back, weight.t())
    assert not _linear._ordered
    for one, other in zip(ordered, plain, strict=True):
        assert one.dtype == dtype
        assert torch.equal(one, other)


def test_a_copy_is_what_is_multiplied_with(room):
    weight, x = torch.randn(64, 32), torch.randn(40, 64)
    with ordered_copies([weight]):
        before = product(x, weight.t())
        weight.zero_()
        assert torch.equal(product(x, weight.t()), before)
        assert not product(x[:, :32].contiguous(), weight[:32].t()).any()  # another matrix at the same place
    assert not product(x, weight.t()).any()


def test_no_copies_where_memory_has_no_room(room, monkeypatch):
    weight = torch.randn(64, 32)
    for free in (0, 16 * weight.nbytes - 16):
        monkeypatch.setattr(_linear, "_available", lambda free=free: free)
        with ordered_copies([weight]) as taken:
            assert (taken, len(_linear._ordered)) == (0, 0)
    assert room_for_copies(2**50) == 2**30


def test_copies_of_copies_end_once(room):
    weight = torch.randn(64, 32)
    with ordered_copies([weight]), ordered_copies([weight]):
        pass
    assert not _linear._ordered


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_learns_the_same_with_and_without_them(room, tiny_model_dir, monkeypatch, dtype):
    found = []
    for free in (0, 2**34):
        monkeypatch.setattr(_linear, "_available", lambda free=free: free)
        run, model = RecordingRun(None), with_lora(load(tiny_model_dir("llama"), dtype=dtype)).train()
        found.append((ours(model, [ROWS], run=run), gradients(model)))
        assert bool(paths_of(run)["ordered_copies"]) == bool(free)
        assert not _linear._ordered
    assert found[0][0] == found[1][0]
    for name, gradient in found[0][1].items():
        assert torch.equal(gradient, found[1][1][name]), name


def test_a_head_that_is_trained_has_no_copy(room, tiny_model_dir):
    for saved in (None, ["lm_head"]):
        model = with_lora(load(tiny_model_dir("llama")), target_modules=["q_proj"], modules_to_save=saved).train()
        with fast_paths(model, ROWS, CPU, RecordingRun(None)):
            heads = [one for one in _linear._ordered.values() if 2 * [len(one.matrix)] != one.matrix.shape]
            vocabulary = model.config.vocab_size
            assert any(vocabulary in one.matrix.shape for one in heads) == (saved is None)
