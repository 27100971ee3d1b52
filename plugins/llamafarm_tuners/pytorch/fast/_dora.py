"""DoRA's part of a linear layer: the length of each row of the sum of both weights is learned apart.

With z = (x∘m) W' + s ((x∘m) A') B', magnitudes M, and lengths n of the rows of W + s B A, f = M / n:
    y = x W' + f z - (x∘m) W'                 (PEFT's; without dropout it is f z)
    dM = (sum over tokens of g∘z) / n,   and A, B and x get what LoRA gives them for the gradient f g;
    x besides (((f - 1) g) W)∘m + g W         (without dropout (f g) W)
n counts as a constant (https://arxiv.org/abs/2402.09353, section 4.3). It is measured when A or B changed, that is once
a step, and without a matrix of the size of W: n² = |W|² + 2 s (W A')·B + s² (B A A')·B, row by row.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from llamafarm_tuners.pytorch.fast._drop import Among, add_left, left
from llamafarm_tuners.pytorch.fast._frozen import times
from llamafarm_tuners.pytorch.fast._lora import Kept, Lora
from llamafarm_tuners.pytorch.fast._low import across, add_up, down

_TINY = 1e-30
"""What a magnitude of zero counts as: the result is divided by it again for its gradient."""


class Dora(Lora):
    """One adapter with magnitudes; where something is dropped, z is kept too."""

    slots: ClassVar[int] = 3

    def __init__(self, module: Any, name: str) -> None:
        super().__init__(module, name)
        self._squares: torch.Tensor | None = None
        self._measured: tuple[torch.Tensor, torch.Tensor, float] | None = None
        self._lengths = torch.empty(0)

    @property
    def parameters(self) -> tuple[torch.Tensor, ...]:
        """A, B, and the magnitudes, (out,)."""
        return *super().parameters, self.module.lora_magnitude_vector[self.name].weight

    def factor(self, weight: torch.Tensor) -> torch.Tensor | None:
        """f; where something is dropped the sum is not all that is multiplied by it, and `forward` does it."""
        return None if self.dropout else _nonzero(self.parameters[2]) / self._length(weight)

    def forward(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        weight: torch.Tensor,
        low: torch.Tensor | None,
        among: Among | None = None,
    ) -> Kept:
        """As LoRA's if nothing is dropped; else y becomes the layer's whole result."""
        if low is not None:
            return [*super().forward(x, y, weight, low), None]
        a, b, magnitudes = self.parameters
        mask = self._mask(x, among)
        z = times(left(x, mask), weight).div_(1 - self.dropout)
        y -= z
        low = down(x, a, mask=mask, exact=True)
        add_up(z, low, b.t(), self._scale(mask))
        y += z * (magnitudes / self._length(weight))
        return [low, mask, z]

    def backward(
        self,
        x: torch.Tensor,
        kept: Kept,
        gradient: torch.Tensor,
        weight: torch.Tensor,
        of_x: torch.Tensor | None,
        along: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        """As LoRA's, and the gradient of the magnitudes."""
        a, magnitudes, (_, mask, z) = self.parameters[0], self.parameters[2], kept
        assert mask is not None
        assert z is not None
        lengths = self._length(weight)
        of_magnitudes = (gradient * z).sum(0, dtype=lengths.dtype) / lengths
        scaled = (gradient * (magnitudes / lengths)).to(gradient.dtype)
        up, of_b = self.low_backward(kept, scaled)
        if of_x is not None:
            of_left = times(scaled.sub_(gradient), weight.t()).div_(1 - self.dropout)
            add_up(of_left, up, a)
            add_left(of_x, of_left, mask)
        return [across(up, x, a, mask=mask), of_b, of_magnitudes.to(magnitudes.dtype)]

    def beyond(self, along: torch.Tensor | None) -> list[torch.Tensor]:
        """That of the magnitudes."""
        magnitudes = self.parameters[2]
        assert along is not None
        return [(along / _nonzero(magnitudes)).to(magnitudes.dtype)]

    def _length(self, weight: torch.Tensor) -> torch.Tensor:
        """n, (out,), in float32 or wider."""
        a, b = (parameter.detach() for parameter in self.parameters[:2])
        before, scale = self._measured, self.scale
        # compared by value: what changes weights need not tell autograd
        same = before is not None and before[2] == scale and torch.equal(before[0], a) and torch.equal(before[1], b)
        if not same:
            wide, narrow, tall = weight.float(), a.float(), b.float()
            if self._squares is None:
                self._squares = torch.linalg.vector_norm(wide, dim=1).square_()
            both = (wide @ narrow.t()).mul_(2).add_(tall @ (narrow @ narrow.t()), alpha=scale)
            self._lengths = self._squares.add((both * tall).sum(1), alpha=scale).clamp_min_(0).sqrt_()
            self._measured = a.clone(), b.clone(), scale
        return self._lengths


def _nonzero(magnitudes: torch.Tensor) -> torch.Tensor:
    return torch.where(magnitudes.detach().abs() < _TINY, _TINY, magnitudes.detach().float())
