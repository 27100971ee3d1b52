"""The compiled kernels against torch in float64, at each level of instructions that this processor has."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from llamafarm_tuners.pytorch.fast import _kernels
from llamafarm_tuners.pytorch.fast._kernels import HeadNorm, Kernels, Shape
from llamafarm_tuners.pytorch.fast.native import FOLDER, LIBRARY, library, load

FOUND = library()
LEVELS = {"v3": ["v3"], "v4": ["v3", "v4"], "v8": ["v8"]}.get(FOUND.level, [])
built = pytest.mark.skipif(not LEVELS, reason=FOUND.told)

FORMATS = (torch.float32, torch.bfloat16)
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Relative: sums in float32 lose the last digits; bfloat16 keeps 8 bits, so that a result is off by up to 1/256."""


@pytest.fixture(params=LEVELS or ["none"])
def compiled(request):
    return Kernels(replace(FOUND, level=request.param))


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def numbers(seed, *shape, dtype=torch.float32, scale=1.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def assert_near(found, expected, tolerance, size=1e-30):
    """`size`: of what the results are differences of; at least that of the results."""
    size = max(expected.double().abs().max().item(), size)
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance * size)


def test_they_are_built_where_there_is_a_compiler():
    if shutil.which("cc") is None and not (FOLDER / LIBRARY).exists():
        pytest.skip("no C compiler")
    assert FOUND.loaded is not None, FOUND.told
    assert FOUND.told.startswith("built for ")


@built
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 700), dtype=st.sampled_from(FORMATS), seed=st.integers(0, 99))
def test_head(rows, columns, dtype, seed):
    for level in LEVELS:
        logits, wanted = numbers(seed, rows, columns, dtype=dtype, scale=4), torch.arange(rows) * 7 % columns
        expected = torch.softmax(logits.double(), 1)
        losses = -expected.gather(1, wanted[:, None]).log().squeeze(1)
        error = expected.scatter_add(1, wanted[:, None], torch.full((rows, 1), -1.0, dtype=torch.float64))
        found = Kernels(replace(FOUND, level=level)).head(logits, wanted)
        torch.testing.assert_close(found, losses, rtol=1e-5, atol=1e-6)
        assert_near(logits, error, CLOSE[dtype])


@built
def test_a_loss_that_float32_cannot_tell_as_a_probability(compiled):
    logits = torch.tensor([[0.0, 200.0], [0.0, -200.0]])
    assert compiled.head(logits, torch.tensor([0, 0])).tolist() == [200.0, 0.0]
    assert logits.tolist() == [[-1.0, 1.0], [0.0, 0.0]]


@built
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("columns", [5, 100])
def test_what_is_no_number_stays_none(compiled, dtype, special, columns):
    logits, wanted = numbers(1, 3, columns, dtype=dtype), torch.tensor([1, 2, 3])
    logits[1, 4] = special
    expected = torch.softmax(logits.double(), 1).gather(1, wanted[:, None]).log().neg().squeeze(1)
    found = compiled.head(logits, wanted)
    assert found.isfinite().tolist() == expected.isfinite().tolist() == [True, special == -math.inf, True]
    assert logits.isfinite().all(1).tolist() == found.isfinite().tolist()
    whole = torch.full((1, columns), -math.inf, dtype=dtype)
    assert compiled.head(whole, torch.tensor([0])).isnan().all()


@built
@pytest.mark.parametrize("wanted", [-100, 9])
def test_a_target_that_is_no_column(compiled, wanted):
    logits = numbers(1, 2, 9)
    before = logits.clone()
    with pytest.raises(IndexError, match="not below 9"):
        compiled.head(logits, torch.tensor([0, wanted]))
    assert logits.equal(before)


SHAPES = {
    "rows": st.integers(1, 50),
    "columns": st.integers(1, 300),
    "dtype": st.sampled_from(FORMATS),
    "seed": st.integers(0, 99),
}


@built
@settings(max_examples=25, deadline=None)
@given(
    **SHAPES,
    half=st.booleans(),
)
def test_norm(rows, columns, dtype, half, seed):
    for level in LEVELS:
        found = Kernels(replace(FOUND, level=level))
        x, gradient = numbers(seed, rows, columns, dtype=dtype), numbers(seed + 1, rows, columns, dtype=dtype)
        weight = numbers(seed + 2, columns)
        weight = weight.bfloat16().float() if half else weight
        wide = x.double().requires_grad_()
        expected = wide * (wide.square().mean(1, keepdim=True) + 1e-5).rsqrt() * weight
        expected.backward(gradient.double())
        result, factors = found.norm(x, weight, half, 1e-5)
        tolerance = CLOSE[torch.bfloat16 if half else dtype]
        assert_near(result, expected.detach(), tolerance)
        assert found.norm(x, weight, half, 1e-5, factors)[0].equal(result)
        size = (gradient * weight * factors).abs().max().item()
        assert_near(found.norm_back(x, gradient, weight, factors), wide.grad, CLOSE[dtype], size)


@built
def test_norm_rounds_as_the_weight_does(compiled):
    x, weight = numbers(1, 20, 64, dtype=torch.bfloat16), numbers(2, 64, dtype=torch.bfloat16)
    factor = (x.float().square().mean(1, keepdim=True) + 1e-5).rsqrt()
    expected = (x.float() * factor).bfloat16() * weight
    # a sum in another order may turn one rounding in many
    assert (compiled.norm(x, weight.float(), True, 1e-5)[0] != expected).float().mean() < 0.01


ACTIVATIONS = {"silu": functional.silu, "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh")}


@built
@settings(max_examples=25, deadline=None)
@given(
    **SHAPES,
    name=st.sampled_from(sorted(ACTIVATIONS)),
)
def test_gated(rows, columns, dtype, name, seed):
    for level in LEVELS:
        found = Kernels(replace(FOUND, level=level))
        both, gradient = numbers(seed, rows, 2 * columns, dtype=dtype, scale=3), numbers(1, rows, columns, dtype=dtype)
        wide = both.double().requires_grad_()
        gate, up = wide.chunk(2, 1)
        expected = ACTIVATIONS[name](gate) * up
        expected.backward(gradient.double())
        assert_near(found.gated(both, name), expected.detach(), CLOSE[dtype])
        assert_near(found.gated_back(both, gradient, name), wide.grad, CLOSE[dtype])


@built
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_far_out(compiled, name):
    gate = torch.tensor([-1e4, -200.0, -90.0, -20.0, -0.0, 20.0, 90.0, 1e4])
    both = torch.cat([gate, torch.ones(8)])[None].contiguous()
    wide = both.double().requires_grad_()
    expected = ACTIVATIONS[name](wide[:, :8]) * wide[:, 8:]
    expected.sum().backward()
    # below float32's smallest normal numbers nothing is asked
    torch.testing.assert_close(compiled.gated(both, name).double(), expected.detach(), rtol=1e-5, atol=1e-30)
    found = compiled.gated_back(both, torch.ones(1, 8), name).double()
    torch.testing.assert_close(found, wide.grad, rtol=1e-5, atol=1e-30)
    broken = torch.full((1, 2), math.nan)
    assert compiled.gated(broken, name).isnan().all()
    assert compiled.gated_back(broken, torch.ones(1, 1), name).isnan().all()


def turned(x, cos, sin):
    n = cos.shape[1]
    first, second, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def attention(parts, shape):
    """As `Kernels.attend`, in float64 and by torch's own operations."""
    q, k, v = parts
    if shape.norms is not None:
        q, k = (
            x * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * norm.weight
            for x, norm in zip((q, k), shape.norms, strict=True)
        )
    if shape.cos is not None:
        q, k = turned(q, shape.cos, shape.sin), turned(k, shape.cos, shape.sin)
    share, found = len(q) // len(k), []
    for one, other, values in zip(*(x.split(list(shape.lengths), 1) for x in (q, k, v)), strict=True):
        scores = one @ other.repeat_interleave(share, 0).mT * shape.scale
        later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        found.append(scores.masked_fill(later, -math.inf).softmax(-1) @ values.repeat_interleave(share, 0))
    return torch.cat(found, 1)


@st.composite
def attentions(draw):
    keys, share = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    size, lengths = draw(st.integers(1, 70)), draw(st.lists(st.integers(1, 150), min_size=1, max_size=4))
    wide = draw(st.sampled_from([size, draw(st.integers(1, 70))]))
    dtype, seed, tokens = draw(st.sampled_from(FORMATS)), draw(st.integers(0, 99)), sum(lengths)
    pairs = draw(st.integers(0, size // 2))
    cos, sin = numbers(seed, tokens, pairs).cos(), numbers(seed, tokens, pairs).sin()
    norms = tuple(HeadNorm(numbers(seed + at, size), 1e-5, False) for at in (1, 2)) if draw(st.booleans()) else None
    shape = Shape(lengths, size**-0.5, cos, sin, norms)
    # as a product leaves them: tokens first, heads side by side
    sizes = ((keys * share, size), (keys, size), (keys, wide))
    parts = tuple(
        numbers(seed + at, tokens, heads, each, dtype=dtype).transpose(0, 1) for at, (heads, each) in enumerate(sizes)
    )
    return parts, shape, numbers(seed + 9, tokens, keys * share, wide, dtype=dtype).transpose(0, 1)


@built
@settings(max_examples=40, deadline=None)
@given(attentions())
def test_attention(case):
    assert_attends(*case)


@built
@pytest.mark.parametrize("dtype", FORMATS)
def test_attention_of_heads_that_end_within_a_pair(dtype):
    """After wider ones, and without a row to fill up with zeros between them."""
    parts = tuple(numbers(at, 18, 2, size, dtype=dtype).transpose(0, 1) for at, size in enumerate((3, 3, 9)))
    assert_attends(parts, Shape([6, 12], 0.5), numbers(9, 18, 2, 9, dtype=dtype).transpose(0, 1))


def assert_attends(parts, shape, gradient):
    wide = [part.double().requires_grad_() for part in parts]
    expected = attention(wide, shape)
    expected.backward(gradient.double())
    # heads that are normed are rounded to their format once more before they are turned
    close = {torch.float32: 3e-5, torch.bfloat16: 3e-2}[parts[0].dtype]
    for level in LEVELS:
        found = Kernels(replace(FOUND, level=level))
        out = torch.full_like(gradient, math.nan)
        totals = found.attend(parts, shape, out)
        assert_near(out, expected.detach(), close)
        into = tuple(torch.full_like(part, math.nan) for part in parts)
        found.attend_back(gradient, parts, shape, totals, into)
        for mine, theirs in zip(into, wide, strict=True):
            assert_near(mine, theirs.grad, close, magnitude(parts, shape, gradient))


def magnitude(parts, shape, gradient):
    """Of what the gradients of q and k are differences of: where one weight is nearly 1, or a norm's row has one entry,
    next to nothing is left of it."""
    entries, slope = [part.abs().max().item() for part in parts], 1.0
    for at, norm in enumerate(shape.norms or ()):
        weight, wide = norm.weight.abs().max().item(), parts[at].double()
        entries[at] = weight * norm.weight.numel() ** 0.5
        slope = max(slope, weight * (wide.square().mean(-1) + norm.eps).rsqrt().max().item())
    return gradient.abs().max().item() * entries[2] * max(entries[:2]) * shape.scale * slope


@built
def test_attention_over_a_long_document(compiled):
    """Several blocks of queries, and scores in the hundreds."""
    shape = Shape([700, 1, 30], 1.0)
    parts = tuple(numbers(at, 2, 731, 64, scale=2) for at in range(3))
    wide = [part.double().requires_grad_() for part in parts]
    expected, gradient = attention(wide, shape), numbers(5, 2, 731, 64)
    expected.backward(gradient.double())
    out, into = torch.empty(2, 731, 64), tuple(torch.empty_like(part) for part in parts)
    totals = compiled.attend(parts, shape, out)
    compiled.attend_back(gradient, parts, shape, totals, into)
    assert_near(out, expected.detach(), 1e-4)  # exp of a score of 300 loses seven bits
    for mine, theirs in zip(into, wide, strict=True):
        assert_near(mine, theirs.grad, 1e-4)


@built
def test_attention_in_bfloat16_is_nearer_than_pytorchs(compiled):
    """Rounding a result alone leaves 1.7e-3 of it; weights that are rounded too add to that."""
    shape = Shape([117, 300], 64**-0.5)
    parts = tuple(numbers(at, 4, 417, 64, dtype=torch.bfloat16) for at in range(3))
    wide, gradient = [part.double().requires_grad_() for part in parts], numbers(9, 4, 417, 64, dtype=torch.bfloat16)
    expected = attention(wide, shape)
    expected.backward(gradient.double())
    theirs, spans = [part.clone().requires_grad_() for part in parts], (slice(0, 117), slice(117, 417))
    sdpa = torch.nn.functional.scaled_dot_product_attention
    result = torch.cat([sdpa(*(x[None, :, span] for x in theirs), is_causal=True)[0] for span in spans], 1)
    result.backward(gradient)
    out, into = torch.empty_like(gradient), tuple(torch.empty_like(part) for part in parts)
    compiled.attend_back(gradient, parts, shape, compiled.attend(parts, shape, out), into)
    exact = [expected.detach(), *(one.grad for one in wide)]
    found = [off(one, truth) for one, truth in zip((out, *into), exact, strict=True)]
    other = [off(one, truth) for one, truth in zip((result.detach(), *(x.grad for x in theirs)), exact, strict=True)]
    assert max(found) < 2.8e-3  # 2.4e-3 of pairs, 1.7e-3 of float32
    assert all(mine <= 1.01 * their for mine, their in zip(found, other, strict=True))


def off(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@built
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("where", range(3))
def test_attention_hands_on_what_is_no_number(compiled, where, dtype):
    parts, shape = [numbers(at, 1, 20, 16, dtype=dtype) for at in range(3)], Shape([8, 12], 0.25)
    parts[where][0, 10, 3] = math.nan
    out, into = torch.empty(1, 20, 16, dtype=dtype), tuple(torch.empty_like(part) for part in parts)
    totals, gradient = compiled.attend(tuple(parts), shape, out), numbers(3, 1, 20, 16, dtype=dtype)
    compiled.attend_back(gradient, tuple(parts), shape, totals, into)
    # a value that no earlier query saw does not reach its gradient (a key does: 0 times no number is none)
    assert where == 1 or not into[0][0, :10].isnan().any()
    broken = out[0].isnan().any(1).tolist()
    assert not any(broken[:8])  # no other document
    assert broken[10]
    assert where == 0 or all(broken[10:])


@st.composite
def narrow(draw):
    """Rows within wider rows, a rank, a width that the kernels take, and a format that this processor multiplies."""
    formats = FORMATS if Kernels(FOUND).pairs else FORMATS[:1]
    rank, dtype = draw(st.integers(1, 70)), draw(st.sampled_from(formats))
    rank += rank % 2 if dtype == torch.bfloat16 else 0
    return draw(st.integers(1, 300)), rank, 32 * draw(st.integers(1, 20)), draw(st.integers(0, 40)), dtype


def seen_by_pairs(level, dtype):
    return dtype == torch.float32 or Kernels(replace(FOUND, level=level)).pairs


def within(seed, rows, columns, gap, dtype):
    """Rows with something that is no number beside them."""
    around = torch.full((rows, columns + gap), math.nan, dtype=dtype)
    around[:, gap // 2 : gap // 2 + columns] = numbers(seed, rows, columns, dtype=dtype)
    return around[:, gap // 2 : gap // 2 + columns]


@built
@settings(max_examples=40, deadline=None)
@given(shape=narrow(), seed=st.integers(0, 99), tall=st.booleans(), rest=st.booleans())
def test_products_with_a_narrow_matrix(shape, seed, tall, rest):
    rows, rank, wide, gap, dtype = shape
    for level in LEVELS:
        found = Kernels(replace(FOUND, level=level))
        if not seen_by_pairs(level, dtype):
            continue
        matrix = numbers(seed, wide, rank).t() if tall else numbers(seed, rank, wide)
        x, y = within(seed + 1, rows, wide, gap, dtype), numbers(seed + 2, rows, rank, dtype=dtype)
        rounded = matrix.to(dtype).double()
        rest = rest and dtype == torch.bfloat16
        low = found.down(x, matrix, 0.5, rest=rest)
        assert_near(low, 0.5 * x.double() @ (matrix.double() if rest else rounded).t(), CLOSE[dtype])
        up = within(seed + 3, rows, wide, gap, dtype)
        beside = up.clone()
        found.up(up, y, matrix, 2.0)
        assert_near(up, beside.double() + 2 * y.double() @ rounded, CLOSE[dtype])
        out = torch.full((wide, rank), math.nan).t() if tall else torch.full((rank, wide), math.nan)
        found.across(y, x, 3.0, out)
        assert_near(out, 3 * y.double().t() @ x.double(), CLOSE[torch.float32])


@built
def test_what_rounding_leaves_out_of_a_narrow_matrix_counts(compiled):
    if not compiled.pairs:
        pytest.skip("no products of bfloat16 here")
    x = torch.tensor([1.0, -1.0] * 32).repeat(9, 1)
    matrix, half = (1 + 2**-10 * x)[:4], x.bfloat16()  # the ones cancel
    assert compiled.down(half, matrix, 1.0, rest=False).unique().tolist() == [0.0]
    assert compiled.down(half, matrix, 1.0, rest=True).unique().tolist() == [64 * 2**-10]


@built
def test_neither_rows_nor_columns_beside_are_touched(compiled):
    for dtype in FORMATS if compiled.pairs else FORMATS[:1]:
        around = torch.zeros(12, 96, dtype=dtype)
        compiled.up(around[1:11, 32:64], torch.ones(10, 2, dtype=dtype), torch.ones(2, 32), 1.0)
        assert around[1:11, 32:64].unique().tolist() == [2.0]
        assert around.sum().item() == 10 * 32 * 2


@built
def test_no_number_in_a_product_stays_none(compiled):
    for dtype in FORMATS if compiled.pairs else FORMATS[:1]:
        x = torch.ones(3, 32, dtype=dtype)
        x[1, 5] = math.nan
        assert compiled.down(x, torch.ones(2, 32), 1.0, rest=False).isnan().tolist() == [
            [False] * 2,
            [True] * 2,
            [False] * 2,
        ]
        out = torch.empty(2, 32)
        compiled.across(torch.ones(3, 2, dtype=dtype), x, 1.0, out)
        assert out.isnan().sum(1).tolist() == [1, 1]


@built
def test_nothing_depends_on_the_number_of_threads(compiled):
    logits, wanted = numbers(1, 70, 900, scale=3), torch.arange(70)
    rows, weight, both = numbers(2, 500, 96), numbers(3, 96), numbers(4, 500, 192)
    shape = Shape([100, 1, 64, 40] * 3, 0.2)
    parts, gradient = tuple(numbers(at, 4, 615, 32) for at in (5, 6, 7)), numbers(8, 4, 615, 32)
    before, found = torch.get_num_threads(), []
    assert compiled.threaded or torch.backends.openmp.is_available() is False or not _kernels._MAPS.is_file()
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        try:
            error, out = logits.clone(), torch.empty(4, 615, 32)
            losses = compiled.head(error, wanted)
            normed, factors = compiled.norm(rows, weight, False, 1e-5)
            totals = compiled.attend(parts, shape, out)
            into = tuple(torch.empty_like(part) for part in parts)
            compiled.attend_back(gradient, parts, shape, totals, into)
            of_rows = compiled.norm_back(rows, normed, weight, factors)
            gated = compiled.gated(both, "silu"), compiled.gated_back(both, rows, "silu")
            low, sums, wide = compiled.down(rows, rows[:8], 1.0, rest=False), torch.empty(8, 96), rows.clone()
            compiled.across(low, rows, 1.0, sums)
            compiled.up(wide, low, rows[:8], 1.0)
            found.append([losses, error, normed, factors, of_rows, *gated, out, totals, *into, low, sums, wide])
        finally:
            torch.set_num_threads(before)
    for other in found[1:]:
        assert all(one.equal(same) for one, same in zip(found[0], other, strict=True))


REFUSED = """
import resource, torch
from llamafarm_tuners.pytorch.fast import _kernels
from llamafarm_tuners.pytorch.fast._kernels import Shape
compiled, tokens = _kernels._kernels(), 100_000
parts, out = tuple(torch.zeros(1, tokens, 32) for _ in range(3)), torch.zeros(1, tokens, 32)
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 2**23, -1))
for call in (
    lambda: compiled.attend(parts, Shape([tokens], 1.0), out),
    lambda: compiled.attend_back(out, parts, Shape([tokens], 1.0), torch.zeros(1, tokens), parts),
):
    try:
        call()
    except MemoryError as error:
        print(error)
compiled.attend(tuple(part[:, :9] for part in parts), Shape([9], 1.0), out[:, :9])
print("goes on")
"""


@built
@pytest.mark.skipif(sys.platform != "linux", reason="its memory is not limited there")
def test_memory_that_is_refused_is_an_error():
    ended = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, check=False, timeout=120)
    assert ended.stdout.splitlines() == 2 * ["no main memory for the scores of attention"] + ["goes on"], ended.stderr


def test_without_a_library(tmp_path):
    assert load(tmp_path).told == "not built: no C compiler when LlamaFarm was installed"
    assert load(tmp_path).loaded is None


@built
def test_a_library_of_other_sources(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "native")
    assert load(tmp_path / "native").loaded is not None
    with (tmp_path / "native" / "rows.c").open("a") as sources:
        sources.write("/* changed */\n")
    assert load(tmp_path / "native").told == "not used: built from other sources; install LlamaFarm again"


def test_a_library_that_is_none(tmp_path):
    (tmp_path / LIBRARY).write_bytes(b"cut short")
    found = load(tmp_path)
    assert found.loaded is None
    assert "cannot be loaded" in found.told


@built
def test_what_they_take():
    whole, half, other = torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float16)
    assert _kernels.kernels(whole, whole) is not None
    assert _kernels.kernels(whole, half) is None
    assert _kernels.kernels(other) is None
    assert _kernels.kernels(torch.zeros(2, device="meta")) is None
    with _kernels.switched(False) as told:
        assert told == "switched off"
        assert _kernels.kernels(whole) is None
    assert _kernels.kernels(whole) is not None
