"""The matrix products that this processor can do: best of several, in GFLOP a CPU second, as one line of JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch
from torch.nn import functional

SHAPES = ((2048, 768, 2048), (2048, 2048, 768), (1024, 1024, 1024))
REPEATS, LONG_ENOUGH = 3, 0.4
"""Each repeat lasts that many CPU seconds: some systems count them in steps of a hundredth."""


def rate(shape: tuple[int, int, int], dtype: torch.dtype, multiply: Callable[..., torch.Tensor]) -> float:
    """Of `x @ weight.T` with x of (tokens, in) and weight of (out, in)."""
    tokens, width, out = shape
    x, weight = torch.randn(tokens, width).to(dtype), torch.randn(out, width).to(dtype)
    multiply(x, weight)
    best = 0.0
    for _ in range(REPEATS):
        began, count, taken = time.process_time(), 0, 0.0
        while taken < LONG_ENOUGH:
            multiply(x, weight)
            count, taken = count + 1, time.process_time() - began
        best = max(best, 2e-9 * count * tokens * width * out / taken)
    return best


def onednn(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product through oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")  # noqa: SLF001  # no other way


def main() -> None:
    """Measure both formats."""
    with torch.no_grad():
        exact = [rate(shape, torch.float32, way) for shape in SHAPES for way in (functional.linear, onednn)]
        half = [rate(shape, torch.bfloat16, functional.linear) for shape in SHAPES]
    print(json.dumps({"float32": max(exact), "bfloat16": max(half)}))


if __name__ == "__main__":
    main()
