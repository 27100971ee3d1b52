"""Matrix products through the library that is faster on this processor, in the arithmetic that was asked for.

PyTorch computes float32 products on x86 with MKL, which takes its slower road on other makers' processors; oneDNN,
which PyTorch also brings, does not. Both are plain float32. bfloat16 goes through oneDNN anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from llamafarm_tuners.pytorch.fast._pages import in_file, let_go
from llamafarm_tuners.pytorch.processor import made_by_amd, room_for_copies

_MEMORY_INFO = Path("/proc/meminfo")

_FEW = 32
"""Of fewer rows products with copies may add up in another order."""

_USUAL_ROWS = 1024
"""For how many rows oneDNN is asked to choose an order; others are as fast with it."""


@cache
def onednn_pays() -> bool:
    """Whether float32 products are faster through oneDNN here: told by the maker, so that equal machines agree."""
    return made_by_amd() and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


@cache
def batched_products_pay() -> bool:
    """Whether float32 products of batches can go through oneDNN, lose nothing there, and are faster."""
    if not onednn_pays() or not hasattr(torch.backends.mkldnn, "matmul"):
        return False
    one, other = (torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    with batched_products():
        result = torch.bmm(one, other)
    # rounding of float32: 1e-6; an operand in bfloat16: 1e-3
    return bool(torch.allclose(result.double(), one.double() @ other.double(), rtol=1e-5, atol=0.0))


@contextmanager
def batched_products() -> Iterator[None]:
    """While it lasts, PyTorch gives float32 products of batches to oneDNN.

    PyTorch does so only where it may compute in bfloat16, which oneDNN does on processors with units for tiles alone.
    Others compute in float32 as ever: `batched_products_pay` looks.
    """
    settings: Any = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x @ weight.T + bias`, outside of autograd.

    Args:
        x: (tokens, in).
        weight: (out, in); a transposed view is as good.
        bias: (out,).
    """
    dense = x.numel() > 0 and (x.is_contiguous() or x.t().is_contiguous())  # oneDNN is very slow on other strides
    if not dense or x.device.type != "cpu":
        return functional.linear(x, weight, bias)
    ordered = _ordered.get(_place(weight)) if _ordered and len(x) >= _FEW else None
    if ordered is not None and x.dtype == weight.dtype:
        return _onednn(x, ordered.copy, bias)
    if x.dtype == torch.float32 and onednn_pays():
        return _onednn(x, weight, bias)
    return functional.linear(x, weight, bias)


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: SLF001
    return result


class _Ordered(NamedTuple):
    """A copy of a matrix in oneDNN's own order; the matrix is kept, so that no other comes to lie where it lies."""

    matrix: torch.Tensor
    copy: torch.Tensor


_ordered: dict[tuple[object, ...], _Ordered] = {}
"""By the place of the matrix."""


def _place(matrix: torch.Tensor) -> tuple[object, ...]:
    return matrix.data_ptr(), matrix.shape, matrix.stride(), matrix.dtype


@contextmanager
def ordered_copies(matrices: Sequence[torch.Tensor]) -> Iterator[int]:
    """While it lasts, `product` takes copies of frozen matrices that stand in oneDNN's own order, if memory has room.

    Without them oneDNN orders a matrix anew in each product. Results are the same to the last bit. A matrix that
    stands in a mapped file takes no memory then until somebody reads it again.

    Args:
        matrices: Each (out, in); nobody changes them meanwhile.

    Yields:
        How many bytes the copies take: two of each matrix, one for either direction, but in float32 only one, for the
        way back, of those that stay in memory themselves (the other gains least there); or none at all.
    """
    formats = (torch.float32, torch.bfloat16) if onednn_pays() else ()
    mine = [matrix.detach() for matrix in matrices if matrix.dtype in formats]
    both = [inside or one.dtype != torch.float32 for one, inside in zip(mine, in_file(mine), strict=True)]
    ways = [matrix.t() for matrix in mine] + [matrix for matrix, forward in zip(mine, both, strict=True) if forward]
    needed = sum(way.nbytes for way in ways)
    if not mine or needed > room_for_copies(_available()):
        yield 0
        return
    added = {_place(way): _in_order(way) for way in ways}
    _ordered.update(added)
    let_go(mine)
    try:
        yield needed
    finally:
        for place in added:
            _ordered.pop(place, None)


@contextmanager
def without_copies() -> Iterator[None]:
    """While it lasts, products take the matrices themselves: they were changed."""
    kept = dict(_ordered)
    _ordered.clear()
    try:
        yield
    finally:
        _ordered.update(kept)


def _in_order(matrix: torch.Tensor) -> _Ordered:
    copy = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), _USUAL_ROWS)  # noqa: SLF001  # no other way
    return _Ordered(matrix, copy)


def _available() -> int:
    """Bytes of main memory that are free; 0: not known."""
    lines = _MEMORY_INFO.read_text(encoding="utf-8").splitlines() if _MEMORY_INFO.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


class _Linear(torch.autograd.Function):  # type: ignore[misc]  # torch does not type it
    """(tokens, in) → (tokens, out). The result is no view, so that adapters may add to it in place."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        of_weight = product(gradient.t(), x.t()) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, gradient.sum(0) if ctx.needs_input_grad[2] else None


def _forward(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    if x.dtype != torch.float32 or x.numel() == 0 or torch.is_autocast_enabled("cpu"):
        return functional.linear(x, self.weight, self.bias)
    result: torch.Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
    return result.view(*x.shape[:-1], result.shape[1])  # a tied head that PEFT copied miscounts its `out_features`


@contextmanager
def faster_products(model: nn.Module) -> Iterator[int]:
    """While it lasts, the model's float32 linear layers on a CPU multiply through oneDNN, if that pays.

    Yields:
        How many do.
    """
    layers = [module for module in model.modules() if onednn_pays() and _fits(module)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward


def _fits(module: nn.Module) -> bool:
    plain = type(module) is nn.Linear and "forward" not in module.__dict__
    return plain and module.weight.device.type == "cpu" and module.weight.dtype == torch.float32
