"""An adapter's products, of which one side is as narrow as its rank: compiled where they can be, else PyTorch's.

Formats are those of x and y; an adapter's matrix is taken in its own, and sums are in float32.
"""

from __future__ import annotations

import torch

from llamafarm_tuners.pytorch.fast._drop import add_left, left
from llamafarm_tuners.pytorch.fast._kernels import Kernels, kernels
from llamafarm_tuners.pytorch.fast._linear import product

WIDEST_RANK = 64
"""With higher ranks general products are as fast; `MOST` in lowrank.c."""

_COLUMNS = 32
"""Widths that the kernels take are multiples of it."""


def down(
    x: torch.Tensor, matrix: torch.Tensor, scale: float = 1.0, mask: torch.Tensor | None = None, *, exact: bool = False
) -> torch.Tensor:
    """`scale * (x∘m) M'` in the format of x, (tokens, rank).

    Args:
        x: (tokens, in).
        matrix: M, (rank, in); a transposed view is as good.
        scale: A factor.
        mask: m, of x; None: all of it is kept.
        exact: In 16 bits with what rounding M leaves out of it. For an adapter's A that is what it has learned: its
            entries are large from the start, and steps of a learning rate are below their last bit.
    """
    rest = exact and matrix.dtype != x.dtype
    if (found := _compiled(matrix.shape, mask, x)) is not None:
        return found.down(x, matrix.float(), scale, mask, rest=rest)
    x = x if mask is None else left(x, mask)
    rounded = matrix.to(x.dtype)
    if rest:
        both = product(x, torch.cat([rounded, (matrix - rounded).to(x.dtype)]))
        result = both[:, : len(matrix)] + both[:, len(matrix) :]
    else:
        # rows that are part of wider ones oneDNN would copy entry by entry
        result = product(x, rounded) if x.is_contiguous() and rounded.is_contiguous() else x @ rounded.t()
    return result if scale == 1 else result.mul_(scale)


def add_up(
    y: torch.Tensor, x: torch.Tensor, matrix: torch.Tensor, scale: float = 1.0, mask: torch.Tensor | None = None
) -> None:
    """`y += scale * (x M)∘m`.

    Args:
        y: (tokens, out).
        x: (tokens, rank).
        matrix: M, (rank, out); a transposed view is as good.
        scale: A factor.
        mask: m, of y; None: all of it grows.
    """
    if (found := _compiled(matrix.shape, mask, x, y)) is not None:
        found.up(y, x, matrix.float(), scale, mask)
    elif mask is None:
        y.addmm_(x, matrix.to(x.dtype), alpha=scale)
    else:
        add_left(y, torch.mm(x, matrix.to(x.dtype)).mul_(scale), mask)


def across(
    x: torch.Tensor, y: torch.Tensor, like: torch.Tensor, scale: float = 1.0, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """`scale * x' (y∘m)`, (rank, wide): summed over tokens, in the format and the order of a matrix.

    Args:
        x: (tokens, rank).
        y: (tokens, wide).
        like: (rank, wide).
        scale: A factor.
        mask: m, of y; None: all of it is kept.
    """
    if (found := _compiled((x.shape[1], y.shape[1]), mask, x, y)) is not None:
        result = torch.empty_strided((x.shape[1], y.shape[1]), like.stride(), dtype=torch.float32)
        found.across(x, y, scale, result, mask)
    else:
        y = y if mask is None else left(y, mask)
        result = product(x.t(), y.t()) if y.is_contiguous() else x.t() @ y
        result = result.mul_(scale)
    return result.to(like.dtype)


def _compiled(shape: tuple[int, ...], mask: torch.Tensor | None, *rows: torch.Tensor) -> Kernels | None:
    """The kernels, if they take rows and a narrow matrix like these, and a mask."""
    (rank, wide), found = shape, kernels(*rows)
    if found is None or not 0 < rank <= WIDEST_RANK or wide % _COLUMNS or len(rows[0]) == 0:
        return None
    if rows[0].dtype == torch.bfloat16 and (not found.pairs or rank % 2):
        return None
    in_bits = mask is None or mask.dtype == torch.uint8
    return found if in_bits and all(one.stride(1) == 1 for one in rows) else None
