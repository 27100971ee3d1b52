"""LoRA's part of a linear layer, and its backward pass.

For x of (tokens, in) and an adapter (A, B) with dropout mask m (0 or 1) and scale s, what is left scaled up with it
(s / (1 - share)), the layer gains
    y = s ((x∘m) A') B'
and for the gradient g of y, with u = s g B:
    dB = s g' ((x∘m) A'),   dA = u' (x∘m),   dx = (u A)∘m
Only (x∘m) A' and the mask are kept for the way back; x is the caller's to keep or to compute again. Adapters that drop
nothing share their products with x: the caller has one of all their matrices A.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from llamafarm_tuners.pytorch.fast._drop import Among, drawn
from llamafarm_tuners.pytorch.fast._low import across, add_up, down

Kept = list[torch.Tensor | None]


class Lora:
    """One adapter of one linear layer, whose parameters stay PEFT's.

    Attributes:
        module: PEFT's layer.
        name: The adapter's.
        slots: How many tensors it keeps for the way back: (x∘m) A', and the mask (None: nothing was dropped).
    """

    slots: ClassVar[int] = 2

    def __init__(self, module: Any, name: str) -> None:
        self.module, self.name = module, name

    @property
    def counts(self) -> bool:
        """Whether it is switched on."""
        return not self.module.disable_adapters

    @property
    def parameters(self) -> tuple[torch.Tensor, ...]:
        """What is trained: A of (r, in) and B of (out, r), and whatever a kind of LoRA has besides."""
        return self.module.lora_A[self.name].weight, self.module.lora_B[self.name].weight

    @property
    def scale(self) -> float:
        """What the adapter's product is multiplied by."""
        return float(self.module.scaling[self.name])

    @property
    def dropout(self) -> float:
        """Share of the adapter's inputs that are dropped now."""
        dropout = self.module.lora_dropout[self.name]
        return float(dropout.p) if isinstance(dropout, nn.Dropout) and dropout.training else 0.0

    def factor(self, weight: torch.Tensor) -> torch.Tensor | None:
        """(out,): by what the sum of the layer's and the adapter's product is multiplied; None: by nothing."""
        return None

    def forward(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        weight: torch.Tensor,
        low: torch.Tensor | None,
        among: Among | None = None,
    ) -> Kept:
        """Add the adapter's part to the layer's product y, in place.

        Args:
            x: (tokens, in).
            y: (tokens, out).
            weight: The layer's, (out, in).
            low: x A', (tokens, r); None if something is dropped.
            among: Of what x are some rows; None: they are all.
        """
        a, b = self.parameters[:2]
        mask = None
        if low is None:
            mask = self._mask(x, among)
            low = down(x, a, mask=mask, exact=True)
        add_up(y, low, b.t(), self._scale(mask))
        return [low, mask]

    def backward(
        self,
        x: torch.Tensor,
        kept: Kept,
        gradient: torch.Tensor,
        weight: torch.Tensor,
        of_x: torch.Tensor | None,
        along: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        """The gradients of `parameters` where something was dropped; that of x is added to `of_x`.

        Args:
            x: (tokens, in).
            kept: What `forward` returned.
            gradient: (tokens, out), of the sum of both products.
            weight: The layer's, (out, in).
            of_x: (tokens, in); None if nobody wants it.
            along: (out,): where there is a factor, sums over tokens of result times its gradient.
        """
        mask, a = kept[1], self.parameters[0]
        assert mask is not None
        up, of_b = self.low_backward(kept, gradient)
        if of_x is not None:
            add_up(of_x, up, a, mask=mask)
        return [across(up, x, a, mask=mask), of_b]

    def beyond(self, along: torch.Tensor | None) -> list[torch.Tensor]:
        """The gradients of `parameters` beyond A and B, where nothing was dropped."""
        return []

    def _mask(self, x: torch.Tensor, among: Among | None) -> torch.Tensor:
        """What is kept of x where something is dropped."""
        return drawn(x, self.dropout, self.parameters[0].dtype, among)

    def _scale(self, mask: torch.Tensor | None) -> float:
        return self.scale / (1 - (self.dropout if mask is not None else 0.0))

    def low_backward(self, kept: Kept, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """u, (tokens, r), and the gradient of B, given that of the sum of both products, (tokens, out)."""
        low, mask = kept[:2]
        assert low is not None
        b, scale = self.parameters[1], self._scale(mask)
        return down(gradient, b.t(), scale), across(low, gradient, b.t(), scale).t()
