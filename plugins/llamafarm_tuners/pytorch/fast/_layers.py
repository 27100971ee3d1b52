"""The parts of a decoder layer with their backward pass written out: nothing is kept that is free to recompute.

They work on one long row, (tokens, size), or on some of its tokens (`among`). Where the weights are bfloat16, norms are
computed in float32, and attention but for its products where the processor multiplies pairs of bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from llamafarm_tuners.pytorch.fast._attend import attend, attend_backward
from llamafarm_tuners.pytorch.fast._documents import Rows
from llamafarm_tuners.pytorch.fast._drop import Among
from llamafarm_tuners.pytorch.fast._group import Group
from llamafarm_tuners.pytorch.fast._kernels import HeadNorm, Kernels, Shape, attention_kernels, kernels

Gradients = tuple[torch.Tensor | None, ...]


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMSNorm: x / sqrt(mean(x²) + eps) * weight, multiplied in the format of the weight.

    Attributes:
        weight: (size,).
        eps: What is added to the mean.
    """

    weight: torch.Tensor
    eps: float

    def compiled(self, *rows: torch.Tensor) -> Kernels | None:
        """The kernels, if they take these rows."""
        dense = all(one.is_contiguous() for one in rows)
        return kernels(*rows) if dense and self.weight.device.type == "cpu" else None

    def wide(self) -> torch.Tensor:
        """The weight in float32."""
        return self.weight.float().contiguous()

    @property
    def half(self) -> bool:
        """Whether the weight multiplies in bfloat16."""
        return bool(self.weight.dtype == torch.bfloat16)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The normed x, and 1 / sqrt(mean(x²) + eps) of each row for the way back."""
        if (found := self.compiled(x)) is not None:
            return found.norm(x, self.wide(), self.half, self.eps)
        wide = x.float()
        factor = (
            torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        )
        return self.again(x, factor), factor

    def again(self, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """The normed x once more."""
        if (found := self.compiled(x)) is not None:
            return found.norm(x, self.wide(), self.half, self.eps, factor)[0]
        return (x.float() * factor).to(self.weight.dtype).mul_(self.weight).to(x.dtype)

    def backward(self, x: torch.Tensor, factor: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of x: with n = x * factor and h = gradient * weight, (h - n * mean(h n)) * factor."""
        if (found := self.compiled(x, gradient)) is not None:
            return found.norm_back(x, gradient, self.wide(), factor)
        normed, inner = x.float() * factor, gradient.float() * self.weight
        mean = (inner * normed).mean(-1, keepdim=True)
        return inner.sub_(normed.mul_(mean)).mul_(factor)


@dataclass(frozen=True, slots=True)
class Heads:
    """Shape and scale of an attention.

    Attributes:
        queries: Number of query heads.
        keys: Number of key (and of value) heads.
        size: Of a head.
        scale: Of the scores.
        norms: RMSNorms over the query and the key heads, if the architecture has them.
    """

    queries: int
    keys: int
    size: int
    scale: float
    norms: tuple[Norm, Norm] | None

    def attention(
        self, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, lengths: Sequence[int]
    ) -> torch.Tensor:
        """Rotary positions and causal attention within each document.

        Args:
            qkv: (tokens, all heads), those of q, k and v side by side.
            cos: (tokens, pairs), float32.
            sin: As `cos`.
            lengths: Of the documents.

        Returns:
            (tokens, query heads).
        """
        result: torch.Tensor
        found = attention_kernels((qkv,), lengths, self.keys) if qkv.is_contiguous() else None
        if found is None:
            result = Attention.apply(qkv, cos, sin, lengths, self)
        else:
            q, k = (HeadNorm(norm.wide(), norm.eps, norm.half) for norm in self.norms) if self.norms else (None, None)
            shape = Shape(lengths, self.scale, cos.contiguous(), sin.contiguous(), (q, k) if q and k else None)
            result = Rows.apply(qkv, self.keys, self.size, shape, found)
        return result

    def parts(self) -> tuple[slice, slice, slice]:
        """Which heads are queries, keys, values."""
        q, k = self.queries, self.keys
        return slice(0, q), slice(q, q + k), slice(q + k, q + 2 * k)


class Activation(NamedTuple):
    """A function of single values.

    Attributes:
        name: Its name in transformers.
        forward: The function.
        both: The function, and its slope.
    """

    name: str
    forward: Callable[[torch.Tensor], torch.Tensor]
    both: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def _silu(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """With s = sigmoid(x): x s, and s + x s (1 - s)."""
    share = torch.sigmoid(x)
    active = x * share
    return active, share.addcmul_(active, 1 - share)


def _gelu(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    slope = torch.ops.aten.gelu_backward(torch.ones_like(x), x, approximate="tanh")
    return functional.gelu(x, approximate="tanh"), slope


ACTIVATIONS = {
    one.name: one
    for one in (
        Activation("silu", functional.silu, _silu),
        Activation("gelu_pytorch_tanh", partial(functional.gelu, approximate="tanh"), _gelu),
    )
}
"""By their names in transformers."""


class NormedGroup(torch.autograd.Function):  # type: ignore[misc]  # torch does not type it
    """norm → group; the normed input is not kept."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, norm: Norm, group: Group, among: Among | None, *_: torch.Tensor
    ) -> torch.Tensor:
        normed, factor = norm.forward(x)
        y, kept = group.forward(normed, among=among)
        ctx.norm, ctx.group = norm, group
        ctx.save_for_backward(x, factor, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Gradients:
        x, factor, *kept = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0]
        of_normed, found = ctx.group.backward(ctx.norm.again(x, factor), kept, gradient, wanted=wanted)
        of_x = ctx.norm.backward(x, factor, of_normed).to(x.dtype) if wanted else None
        return of_x, None, None, None, *found


class AddedGroup(torch.autograd.Function):  # type: ignore[misc]  # torch does not type it
    """residual + group(x); maybe without a residual."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        group: Group,
        among: Among | None,
        *_: torch.Tensor,
    ) -> torch.Tensor:
        y, kept = group.forward(x, residual, among)
        ctx.group = group
        ctx.save_for_backward(x, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Gradients:
        x, *kept = ctx.saved_tensors
        of_x, found = ctx.group.backward(x, kept, gradient, wanted=ctx.needs_input_grad[0])
        return of_x, gradient if ctx.needs_input_grad[1] else None, None, None, *found


class GatedGroup(torch.autograd.Function):  # type: ignore[misc]  # torch does not type it
    """residual + group(activation(gate) * up), gate and up side by side; their product is not kept."""

    @staticmethod
    def forward(
        ctx: Any,
        both: torch.Tensor,
        residual: torch.Tensor | None,
        group: Group,
        activation: Activation,
        among: Among | None,
        *_: torch.Tensor,
    ) -> torch.Tensor:
        y, kept = group.forward(_gated(both, activation), residual, among)
        ctx.group, ctx.activation = group, activation
        ctx.save_for_backward(both, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Gradients:
        both, *kept = ctx.saved_tensors
        passed = gradient if ctx.needs_input_grad[1] else None
        if (compiled := kernels(both)) is not None and both.is_contiguous():
            product = compiled.gated(both, ctx.activation.name)
            of_product, found = ctx.group.backward(product, kept, gradient, wanted=True)
            return (
                compiled.gated_back(both, of_product.contiguous(), ctx.activation.name),
                passed,
                None,
                None,
                None,
                *found,
            )
        gate, up = both.chunk(2, 1)
        active, slope = ctx.activation.both(gate)
        of_product, found = ctx.group.backward(active * up, kept, gradient, wanted=True)
        of_both = torch.empty_like(both)
        of_gate, of_up = of_both.chunk(2, 1)
        torch.mul(of_product, active, out=of_up)
        torch.mul(of_product.mul_(up), slope, out=of_gate)
        return of_both, passed, None, None, None, *found


def _gated(both: torch.Tensor, activation: Activation) -> torch.Tensor:
    """activation(gate) * up."""
    if (compiled := kernels(both)) is not None and both.is_contiguous():
        return compiled.gated(both, activation.name)
    gate, up = both.chunk(2, 1)
    return activation.forward(gate).mul_(up)


class AddedNorm(torch.autograd.Function):  # type: ignore[misc]  # torch does not type it
    """residual + norm(x)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, residual: torch.Tensor, norm: Norm) -> torch.Tensor:
        normed, factor = norm.forward(x)
        ctx.norm = norm
        ctx.save_for_backward(x, factor)
        return normed.add_(residual)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Gradients:
        x, factor = ctx.saved_tensors
        return ctx.norm.backward(x, factor, gradient).to(x.dtype), gradient, None


class Chosen(torch.autograd.Function):  # type: ignore[misc]  # torch does not type it
    """Some rows, none of them twice: PyTorch adds their gradients up one by one, as if one could be."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows)
        ctx.tokens = len(x)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Gradients:
        (rows,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.tokens, gradient.shape[1]).index_copy_(0, rows, gradient), None


class Attention(torch.autograd.Function):  # type: ignore[misc]  # torch does not type it
    """q, k, v side by side → rotary positions → causal attention within each document."""

    @staticmethod
    def forward(
        ctx: Any, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, lengths: Sequence[int], heads: Heads
    ) -> torch.Tensor:
        tokens, (q, k, v) = len(qkv), heads.parts()
        raw = qkv.view(tokens, -1, heads.size).transpose(0, 1)
        rotated = torch.empty(raw.shape, dtype=torch.float32).copy_(raw)
        factors = []
        for norm, part in zip(heads.norms or (), (q, k), strict=False):
            normed, factor = norm.forward(raw[part])
            rotated[part] = normed
            factors.append(factor)
        _rotate(rotated[: v.start], cos, sin)
        out = torch.empty((tokens, heads.queries, heads.size), dtype=qkv.dtype)
        sums = attend((rotated[q], rotated[k], rotated[v]), lengths, heads.scale, out)
        ctx.lengths, ctx.heads = lengths, heads
        ctx.save_for_backward(rotated, cos, sin, out, qkv if heads.norms else None, *factors, *sums)
        ctx.norms = len(factors)
        return out.view(tokens, -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Gradients:
        rotated, cos, sin, out, qkv, *rest = ctx.saved_tensors
        factors, sums, heads = rest[: ctx.norms], rest[ctx.norms :], ctx.heads
        tokens, (q, k, v) = len(out), heads.parts()
        of_rotated = torch.empty_like(rotated)
        of_out = gradient.view(tokens, heads.queries, -1).transpose(0, 1).float()
        parts, into = ((tensor[q], tensor[k], tensor[v]) for tensor in (rotated, of_rotated))
        attend_backward(of_out, parts, (out, sums), ctx.lengths, heads.scale, into)
        _rotate(of_rotated[: v.start], cos, -sin)
        for norm, part, factor in zip(heads.norms or (), (q, k), factors, strict=False):
            raw = qkv.view(tokens, -1, heads.size).transpose(0, 1)[part]
            of_rotated[part] = norm.backward(raw, factor, of_rotated[part])
        flat = torch.empty((tokens, len(rotated), heads.size), dtype=gradient.dtype).copy_(of_rotated.transpose(0, 1))
        return flat.view(tokens, -1), None, None, None, None


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Turn the pairs (i, i + n) of the first 2n entries of each head by the angles of the token, in place.

    Args:
        x: (heads, tokens, size).
        cos: (tokens, n).
        sin: (tokens, n).
    """
    n = cos.shape[-1]
    first, second = x[..., :n], x[..., n : 2 * n]
    turned = first * sin
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).add_(turned)


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """As `_rotate`, of which torch keeps account, and not in place."""
    n = cos.shape[-1]
    first, second, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
