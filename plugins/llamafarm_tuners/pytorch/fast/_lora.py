"""Linear layers with a common input, frozen and maybe with LoRA, as one product each way.

For x of (tokens, in), a frozen W of (out, in) and an adapter (A, B) with scale s and dropout mask m:
    y = x W' + s ((x∘m) A') B'
and for the gradient g of y, with u = s g B:
    dB = s g' ((x∘m) A'),   dA = u' (x∘m),   dx = g W + (u A)∘m
Only (x∘m) A' and the mask are kept for the way back; x is the caller's to keep or to compute again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from llamafarm_tuners.pytorch.fast._linear import low_product, product


class Member:
    """A linear layer of a group: plain, or wrapped by PEFT with one LoRA adapter; parameters stay the module's own."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        self.base: nn.Linear = module.base_layer if isinstance(module, LoraLinear) else module
        self.name: str | None = module.active_adapters[0] if isinstance(module, LoraLinear) else None

    @staticmethod
    def refusal(module: nn.Module) -> str | None:
        """Why a module cannot be a member; None if it can."""
        base: Any = module.base_layer if type(module) is LoraLinear else module
        if type(base) is not nn.Linear:
            return f"a layer of type {type(base).__name__}"
        if any(parameter.requires_grad for parameter in base.parameters()):
            return "the base is trained"
        if any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):  # noqa: SLF001  # no other way
            return "hooks on linear layers"
        return _refused_adapter(module) if isinstance(module, LoraLinear) else None

    @property
    def adapted(self) -> bool:
        """Whether there is an adapter, and it counts."""
        return self.name is not None and not self.module.disable_adapters

    @property
    def parameters(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A of (r, in) and B of (out, r)."""
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


def _refused_adapter(module: LoraLinear) -> str | None:
    adapters = module.active_adapters
    if len(adapters) != 1 or module.merged or module.fan_in_fan_out:
        return "adapters that are merged, transposed or several"
    if module.lora_variant or adapters[0] not in module.lora_A:
        return "another kind of LoRA"
    return "adapters with a bias" if module.lora_B[adapters[0]].bias is not None else None


Kept = list[torch.Tensor | None]
"""For each adapter: (x∘m) A', and m (None: nothing was dropped)."""


class Group:
    """Members as one layer, whose outputs stand side by side.

    While it lasts, the members' frozen weights are views of one matrix, so that nothing is stored twice.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.members = [Member(module) for module in modules]
        bases = [member.base for member in self.members]
        self.weight = bases[0].weight.data if len(bases) == 1 else torch.cat([base.weight.data for base in bases])
        self.sizes = [base.weight.shape[0] for base in bases]
        if len(bases) > 1:
            for base, view in zip(bases, self.weight.split(self.sizes), strict=True):
                base.weight.data = view
        given = [base.bias for base in bases]
        self.bias = None
        if any(bias is not None for bias in given):
            zeros = [torch.zeros(size, dtype=self.weight.dtype) for size in self.sizes]
            self.bias = torch.cat(
                [zero if bias is None else bias.data for bias, zero in zip(given, zeros, strict=True)]
            )

    def release(self) -> None:
        """Give the members weights of their own again."""
        if len(self.members) > 1:
            for member in self.members:
                member.base.weight.data = member.base.weight.data.clone()

    def parameters(self) -> list[torch.Tensor]:
        """A and B of each adapter that counts."""
        return [parameter for member in self.members if member.adapted for parameter in member.parameters]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Kept]:
        """(tokens, in) → (tokens, sum of outs), and what `backward` wants."""
        y, kept = product(x, self.weight, self.bias), []
        for member, part in zip(self.members, y.split(self.sizes, dim=1), strict=True):
            if member.adapted:
                kept += _add_low(member, x, part)
        return y, kept

    def backward(
        self, x: torch.Tensor, kept: Kept, gradient: torch.Tensor, *, wanted: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """The gradients of x (if `wanted`) and of `parameters`, given that of the result."""
        of_x = product(gradient, self.weight.t()) if wanted else None
        found: list[torch.Tensor] = []
        lows = iter(kept)
        for member, part in zip(self.members, gradient.split(self.sizes, dim=1), strict=True):
            if member.adapted:
                low, mask = next(lows), next(lows)
                assert low is not None
                found += _low_backward(member, x, (low, mask), part, of_x)
        return of_x, found


def _add_low(member: Member, x: torch.Tensor, y: torch.Tensor) -> Kept:
    """Add an adapter's part to the layer's result."""
    a, b = member.parameters
    share, mask = member.dropout, None
    if share:
        # drawn as torch's dropout draws on a CPU, so that the same seed drops the same; what is left is scaled up
        mask = torch.empty(x.shape, dtype=a.dtype).bernoulli_(1 - share).bool()
    low = low_product(x if mask is None else x * mask, a)
    y.addmm_(low, b.to(x.dtype).t(), alpha=member.scale / (1 - share))
    return [low, mask]


def _low_backward(
    member: Member,
    x: torch.Tensor,
    kept: tuple[torch.Tensor, torch.Tensor | None],
    gradient: torch.Tensor,
    of_x: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of A and B; that of x is added to `of_x`."""
    low, mask = kept
    a, b = member.parameters
    scale = member.scale / (1 - (member.dropout if mask is not None else 0.0))
    # `gradient` is a part of wider rows, which oneDNN would copy entry by entry: these two are left to torch
    up = (gradient @ b.to(x.dtype)).mul_(scale)
    of_b = (low.t() @ gradient).t().mul_(scale).contiguous()
    of_a = product(up.t(), (x if mask is None else x * mask).t())
    if of_x is not None and mask is None:
        of_x.addmm_(up, a.to(x.dtype))
    elif of_x is not None:
        of_x += product(up, a.to(x.dtype).t()).mul_(mask)
    return of_a.to(a.dtype), of_b.to(b.dtype)
