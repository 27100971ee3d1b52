"""Figures of a matrix."""

from __future__ import annotations

from typing import Any

import torch

TOPS = (2, 5, 20, 100, 500, 1000)


def statistics(tensor: torch.Tensor) -> dict[str, Any]:
    """Shape, moments, extremes and the share of the largest entries.

    Sums are taken in float64. `ratios` say how far the largest entry stands out; `top` gives, for the k entries of
    largest magnitude, the smallest and the mean of these magnitudes and the share of the squared norm that they hold.
    """
    values = tensor.detach().double().flatten()
    size = values.abs()
    largest = size.topk(min(TOPS[-1], len(size))).values
    norm, mean, median = float(values.norm()), float(size.mean()), float(size.median())
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "mean": float(values.mean()),
        "std": float(values.std(correction=0)),
        "min": float(values.min()),
        "max": float(values.max()),
        "norm": norm,
        "absolute": {"mean": mean, "max": float(size.max()), "median": median, "norm": float(size.sum())},
        "ratios": {"max_to_mean": _ratio(float(size.max()), mean), "max_to_median": _ratio(float(size.max()), median)},
        "top": {
            str(k): {
                "max": float(largest[0]),
                "mean": float(largest[:k].mean()),
                "min": float(largest[:k].min()),
                "share_of_squared_norm": _ratio(float(largest[:k].square().sum()), norm**2),
            }
            for k in TOPS
            if k <= len(size)
        },
    }


def sink_mass(weights: torch.Tensor) -> float:
    """The mean share of attention that goes to the first token, over heads and all later queries.

    Args:
        weights: (rows, heads, length, length), after the softmax.
    """
    return float(weights[:, :, 1:, 0].double().mean()) if weights.shape[2] > 1 else 1.0


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
