"""Attention within documents, by PyTorch's kernel and by our blocks, against softmax(q k') v written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from llamafarm_tuners.pytorch.fast import _attend, _linear


def written_out(q, k, v, lengths, scale):
    """(tokens, heads, size), document by document, in float64."""
    share = len(q) // len(k)
    k, v = (part.repeat_interleave(share, 0) for part in (k, v))
    parts = []
    for one, two, three in zip(*(part.split(lengths, dim=1) for part in (q, k, v)), strict=True):
        scores = scale * one @ two.transpose(1, 2)
        later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        parts.append(scores.masked_fill(later, -torch.inf).softmax(-1) @ three)
    return torch.cat(parts, 1).transpose(0, 1)


def inputs(lengths, heads=4, keys=2, size=16, values=None, spread=1.0):
    torch.manual_seed(sum(lengths))
    shapes = (heads, size), (keys, size), (keys, values or size)
    return [spread * torch.randn(count, sum(lengths), width) for count, width in shapes]


def both_ways(parts, lengths, scale):
    """Result and gradients by `attend` and `attend_backward`, for a gradient of random numbers."""
    out = torch.empty(sum(lengths), len(parts[0]), parts[2].shape[2])
    kept = _attend.attend(tuple(parts), lengths, scale, out)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    into = tuple(torch.full_like(part, torch.nan) for part in parts)
    _attend.attend_backward(gradient.transpose(0, 1), tuple(parts), (out, kept), lengths, scale, into)
    return out, into, gradient


def check(lengths, scale=0.3, relative=2e-6, **options):
    """Differences as a share of the whole: float32 has seven digits, and sums here have some hundred parts."""
    parts = inputs(lengths, **options)
    out, into, gradient = both_ways(parts, lengths, scale)
    exact = [part.double().requires_grad_() for part in parts]
    expected = written_out(*exact, lengths, scale)
    found = torch.autograd.grad(expected, exact, gradient.double())
    for one, other in zip((out, *into), (expected, *found), strict=True):
        assert (one - other).norm() <= relative * max(other.norm(), gradient.norm())


@pytest.fixture(params=["blocks", "kernel"])
def way(request, monkeypatch):
    blocks = request.param == "blocks"
    if blocks and not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("this PyTorch cannot be told")
    monkeypatch.setattr(_attend, "batched_products_pay", lambda: blocks)
    return request.param


@pytest.mark.parametrize("lengths", [[1], [3, 1, 17], [16, 32], [130, 5], [161, 320, 40], [500]])
def test_results_and_gradients_are_those_of_attention_written_out(way, lengths):
    check(lengths)


@pytest.mark.parametrize(("heads", "keys"), [(1, 1), (6, 6), (6, 2), (4, 1)])
def test_with_as_many_key_heads_as_query_heads_or_fewer(way, heads, keys):
    check([33, 7], heads=heads, keys=keys)


def test_scores_far_apart_lose_nothing(way):
    check([40, 170], spread=6.0, relative=2e-5)  # scores of some hundred have an absolute error of 1e-5


def test_values_of_another_size_than_keys(monkeypatch):
    monkeypatch.setattr(_attend, "batched_products_pay", lambda: True)
    check([20, 5], values=24)


def test_heads_some_at_a_time_and_documents_in_many_blocks(monkeypatch):
    monkeypatch.setattr(_attend, "batched_products_pay", lambda: True)
    monkeypatch.setattr(_attend, "_SCORES", 1)
    monkeypatch.setattr(_attend, "_ROWS", 16)
    check([50, 3, 64], heads=6, keys=3)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=4))
def test_documents_of_any_lengths(lengths):
    before, _attend.batched_products_pay = _attend.batched_products_pay, lambda: True
    try:
        check(lengths, heads=2, keys=1, size=8)
    finally:
        _attend.batched_products_pay = before


def test_what_stands_in_other_documents_does_not_matter(way):
    lengths = [20, 45, 9]
    parts = inputs(lengths)
    out, into, _ = both_ways(parts, lengths, 0.3)
    for part in parts:
        part[:, :20] = part[:, :20] * 3 + 1
    changed, others, _ = both_ways(parts, lengths, 0.3)
    assert torch.equal(out[20:], changed[20:])
    assert not torch.allclose(out[:20], changed[:20])
    for one, other in zip(into, others, strict=True):
        assert torch.equal(one[:, 20:], other[:, 20:])


def test_products_in_blocks_go_little_beyond_the_keys_that_are_seen(monkeypatch):
    monkeypatch.setattr(_attend, "batched_products_pay", lambda: True)
    parts = inputs([640], heads=2, keys=2, size=64)
    with FlopCounterMode(display=False) as counter:
        both_ways(parts, [640], 0.3)
    pairs = 2 * 640 * 641 / 2
    # seven products: two forward, five back and one of them computed again; blocks of 160 rows add an eighth of all
    assert counter.get_total_flops() < 7 * 2 * 64 * pairs * 1.27


def test_the_setting_is_put_back_and_products_stay_exact():
    settings_ = getattr(torch.backends.mkldnn, "matmul", None)
    if settings_ is None:
        pytest.skip("this PyTorch cannot be told")
    before = settings_.fp32_precision
    with pytest.raises(ZeroDivisionError), _linear.batched_products():
        _ = 1 / 0
    assert settings_.fp32_precision == before
    if not _linear.batched_products_pay():
        return
    torch.manual_seed(0)
    one, other = torch.randn(4, 70, 90), torch.randn(4, 90, 50)
    with _linear.batched_products():
        found = torch.bmm(one, other)
    torch.testing.assert_close(found.double(), one.double() @ other.double(), rtol=1e-5, atol=1e-4)


def test_products_that_would_lose_digits_are_not_taken(monkeypatch):
    monkeypatch.setattr(_linear, "onednn_pays", lambda: True)
    monkeypatch.setattr(torch, "bmm", lambda one, other: (one.bfloat16() @ other.bfloat16()).float())
    _linear.batched_products_pay.cache_clear()
    try:
        assert not _linear.batched_products_pay()
    finally:
        monkeypatch.undo()
        _linear.batched_products_pay.cache_clear()
