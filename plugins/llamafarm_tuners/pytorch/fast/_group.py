"""Linear layers with a common input, frozen and maybe with adapters, as one product each way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from llamafarm_tuners.pytorch.fast._dora import Dora
from llamafarm_tuners.pytorch.fast._drop import Among
from llamafarm_tuners.pytorch.fast._frozen import Frozen, refused_base, times
from llamafarm_tuners.pytorch.fast._lora import Kept, Lora
from llamafarm_tuners.pytorch.fast._low import across, add_up, down

_WRAPPERS = frozenset({"Linear", "Linear4bit", "Linear8bitLt"})
"""PEFT's layers that hold a linear layer and its LoRA adapters, by name: two exist only beside bitsandbytes."""


def refused_member(module: Any) -> str | None:
    """Why a module cannot be a member of a group; None if it can."""
    wrapped = is_wrapper(module)
    if reason := refused_base(module.base_layer if wrapped else module):
        return reason
    if any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):  # noqa: SLF001  # no other way
        return "hooks on linear layers"
    return _refused_adapter(module) if wrapped else None


def is_wrapper(module: Any) -> bool:
    """Whether a module is one of PEFT's layers that hold a linear layer and its LoRA adapters."""
    lora = isinstance(module, LoraLayer) and type(module).__module__.startswith("peft.tuners.lora.")
    return lora and type(module).__name__ in _WRAPPERS


def _refused_adapter(module: Any) -> str | None:
    adapters = module.active_adapters
    if len(adapters) != 1 or module.merged or getattr(module, "fan_in_fan_out", False):
        return "adapters that are merged, transposed or several"
    name = adapters[0]
    variant = type(module.lora_variant[name]).__name__ if name in module.lora_variant else "LoRA"
    if variant not in ("LoRA", "DoraLinearVariant") or name not in module.lora_A:
        return f"another kind of LoRA ({variant})"
    return "adapters with a bias" if module.lora_B[name].bias is not None else None


class Group:
    """Members as one layer, whose outputs stand side by side."""

    def __init__(self, modules: Sequence[Any]) -> None:
        bases: list[nn.Linear] = [module.base_layer if is_wrapper(module) else module for module in modules]
        self.frozen = Frozen(bases)
        self.adapters = [_adapter(module) for module in modules]
        self.release = self.frozen.release
        self._wrappers = [module for module in modules if is_wrapper(module)]

    @property
    def merged(self) -> bool:
        """Whether adapters are in the weights now, which copies of these do not know."""
        return any(module.merged for module in self._wrappers)

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether inputs in a format are what the layers take now."""
        return self.frozen.takes(dtype) and not self.merged

    def parameters(self) -> list[torch.Tensor]:
        """Those of each adapter that counts."""
        return [parameter for adapter in self._counting() for parameter in adapter.parameters]

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None, among: Among | None = None
    ) -> tuple[torch.Tensor, Kept]:
        """(tokens, in) → (tokens, sum of outs), with the residual added, and what `backward` wants.

        `among`: of what x are some rows; None: they are all.
        """
        weight, bias = self.frozen.matrix(x.dtype), self.frozen.bias
        bias = None if bias is None else bias.to(weight.dtype)
        factors = self._factors(weight)
        y = times(x, weight, bias if factors is None else None)
        kept: Kept = []
        for low, (adapter, part, rows) in zip(self._lows(x), self._parts(y, weight), strict=True):
            kept += adapter.forward(x, part, rows, low, among)
        if factors is None:
            return y if residual is None else y.add_(residual), [None, None, *kept]
        y.mul_(factors)
        # y as such is kept, and not changed any more; without autograd's knowledge, or it would keep itself alive
        kept = [factors, y.data, *kept]
        for added in (None if bias is None else bias.to(y.dtype), residual):
            y = y if added is None else y + added
        return y, kept

    def backward(
        self, x: torch.Tensor, kept: Kept, gradient: torch.Tensor, *, wanted: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """The gradients of x (if `wanted`) and of `parameters`, given that of the result."""
        factors, y, *rest = kept
        weight, along = self.frozen.matrix(x.dtype), None
        if factors is not None and y is not None:
            along = (gradient * y).sum(0, dtype=factors.dtype)
            gradient = (gradient * factors).to(gradient.dtype)
        of_x = times(gradient, weight.t()) if wanted else None
        found, slots, shared = [], iter(rest), _Shared(x)
        sums = along.split(self.frozen.sizes) if along is not None else [None] * len(self.adapters)
        parts = zip(self.adapters, gradient.split(self.frozen.sizes, dim=1), sums, self._rows(weight), strict=True)
        for adapter, part, total, rows in parts:
            if adapter is None or not adapter.counts:
                continue
            mine = [next(slots) for _ in range(adapter.slots)]
            if mine[1] is not None:
                found.append(adapter.backward(x, mine, part, rows, of_x, total))
                continue
            up, of_b = adapter.low_backward(mine, part)
            found.append([of_b, *adapter.beyond(total)])
            shared.add(adapter.parameters[0], up, found[-1])
        shared.finish(of_x)
        return of_x, [one for mine in found for one in mine]

    def _lows(self, x: torch.Tensor) -> list[torch.Tensor | None]:
        """X A' of each adapter that counts, by one product; None for those that drop something."""
        counting = self._counting()
        shared = [adapter.parameters[0] for adapter in counting if not adapter.dropout]
        lows = iter(down(x, _rows(shared), exact=True).split([len(a) for a in shared], dim=1) if shared else ())
        return [None if adapter.dropout else next(lows) for adapter in counting]

    def _counting(self) -> list[Lora]:
        return [adapter for adapter in self.adapters if adapter is not None and adapter.counts]

    def _parts(self, y: torch.Tensor, weight: torch.Tensor) -> Iterator[tuple[Lora, torch.Tensor, torch.Tensor]]:
        """Each adapter that counts, with its columns of y and its rows of the weight."""
        for adapter, part, rows in zip(
            self.adapters, y.split(self.frozen.sizes, dim=1), self._rows(weight), strict=True
        ):
            if adapter is not None and adapter.counts:
                yield adapter, part, rows

    def _rows(self, weight: torch.Tensor) -> Sequence[torch.Tensor]:
        rows: tuple[torch.Tensor, ...] = weight.split(self.frozen.sizes)
        return rows

    def _factors(self, weight: torch.Tensor) -> torch.Tensor | None:
        """(sum of outs,): what adapters multiply results with, 1 elsewhere; None if none does."""
        found = [
            adapter.factor(rows) if adapter is not None and adapter.counts else None
            for adapter, rows in zip(self.adapters, self._rows(weight), strict=True)
        ]
        given = next((factor for factor in found if factor is not None), None)
        if given is None:
            return None
        ones = [given.new_ones(size) for size in self.frozen.sizes]
        return torch.cat([one if factor is None else factor for factor, one in zip(found, ones, strict=True)])


class _Shared:
    """What adapters that drop nothing share on the way back: their products with x, and with their matrices A.

    Args:
        x: (tokens, in).
    """

    def __init__(self, x: torch.Tensor) -> None:
        self._x = x
        self._matrices: list[torch.Tensor] = []
        self._ups: list[torch.Tensor] = []
        self._into: list[list[torch.Tensor]] = []

    def add(self, a: torch.Tensor, up: torch.Tensor, into: list[torch.Tensor]) -> None:
        """One of them, its u, and its gradients, of which that of A will be the first."""
        self._matrices.append(a)
        self._ups.append(up)
        self._into.append(into)

    def finish(self, of_x: torch.Tensor | None) -> None:
        """Give each the gradient of its A, and add what they give to that of x."""
        if not self._ups:
            return
        up = self._ups[0] if len(self._ups) == 1 else torch.cat(self._ups, 1)
        matrix = _rows(self._matrices)
        found = across(up, self._x, matrix).split([len(a) for a in self._matrices])
        for of_a, into in zip(found, self._into, strict=True):
            into.insert(0, of_a)
        if of_x is not None:
            add_up(of_x, up, matrix)


def _rows(matrices: list[torch.Tensor]) -> torch.Tensor:
    """One below the other."""
    return matrices[0] if len(matrices) == 1 else torch.cat(matrices)


def _adapter(module: Any) -> Lora | None:
    if not is_wrapper(module):
        return None
    name = module.active_adapters[0]
    return (Dora if name in module.lora_variant else Lora)(module, name)
