"""Decoder layers of the Llama family with their backward pass written out: nothing is kept that is free to recompute.

A layer is four functions: norm and grouped q, k, v; rotary positions and attention of documents; output projection
and residual; norm and grouped gate and up; activation, down projection and residual. They work on one long row,
(tokens, size). Where the weights are bfloat16, norms and attention are computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from llamafarm_tuners.pytorch.fast._attend import attend, attend_backward
from llamafarm_tuners.pytorch.fast._lora import Group, Member

Gradients = tuple[torch.Tensor | None, ...]


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMSNorm: x / sqrt(mean(x²) + eps) * weight."""

    weight: torch.Tensor
    eps: float

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The normed x, and 1 / sqrt(mean(x²) + eps) of each row for the way back."""
        wide = x.float()
        factor = (
            torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        )
        return self.again(x, factor), factor

    def again(self, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """The normed x once more."""
        return (x.float() * factor).to(x.dtype).mul_(self.weight)

    def backward(self, x: torch.Tensor, factor: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of x in float32: with n = x * factor and h = gradient * weight, (h - n * mean(h n)) * factor."""
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

    def parts(self) -> tuple[slice, slice, slice]:
        """Which heads are queries, keys, values."""
        q, k = self.queries, self.keys
        return slice(0, q), slice(q, q + k), slice(q + k, q + 2 * k)


class _NormedGroup(torch.autograd.Function):  # type: ignore[misc]  # torch does not type it
    """norm → group; the normed input is not kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, norm: Norm, group: Group, *_: torch.Tensor) -> torch.Tensor:
        normed, factor = norm.forward(x)
        y, kept = group.forward(normed)
        ctx.norm, ctx.group = norm, group
        ctx.save_for_backward(x, factor, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Gradients:
        x, factor, *kept = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0]
        of_normed, found = ctx.group.backward(ctx.norm.again(x, factor), kept, gradient, wanted=wanted)
        of_x = ctx.norm.backward(x, factor, of_normed).to(x.dtype) if wanted else None
        return of_x, None, None, *found


class _AddedGroup(torch.autograd.Function):  # type: ignore[misc]  # torch does not type it
    """residual + group(x)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, residual: torch.Tensor, group: Group, *_: torch.Tensor) -> torch.Tensor:
        y, kept = group.forward(x)
        ctx.group = group
        ctx.save_for_backward(x, *kept)
        return y.add_(residual)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Gradients:
        x, *kept = ctx.saved_tensors
        of_x, found = ctx.group.backward(x, kept, gradient, wanted=ctx.needs_input_grad[0])
        return of_x, gradient, None, *found


class _GatedGroup(torch.autograd.Function):  # type: ignore[misc]  # torch does not type it
    """residual + group(silu(gate) * up), gate and up side by side; their product is not kept."""

    @staticmethod
    def forward(ctx: Any, both: torch.Tensor, residual: torch.Tensor, group: Group, *_: torch.Tensor) -> torch.Tensor:
        gate, up = both.chunk(2, 1)
        y, kept = group.forward(functional.silu(gate).mul_(up))
        ctx.group = group
        ctx.save_for_backward(both, *kept)
        return y.add_(residual)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Gradients:
        both, *kept = ctx.saved_tensors
        gate, up = both.chunk(2, 1)
        share = torch.sigmoid(gate)
        active = gate * share
        of_product, found = ctx.group.backward(active * up, kept, gradient, wanted=True)
        of_both = torch.empty_like(both)
        of_gate, of_up = of_both.chunk(2, 1)
        torch.mul(of_product, active, out=of_up)
        slope = share.addcmul_(active, 1 - share)  # of z s with s = sigmoid(z): s + z s (1 - s)
        torch.mul(of_product.mul_(up), slope, out=of_gate)
        return of_both, gradient, None, *found


class _Attention(torch.autograd.Function):  # type: ignore[misc]  # torch does not type it
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


class FastLayer:
    """The faster way of one decoder layer; `forward` takes its place."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        attention, mlp = layer.self_attn, layer.mlp
        self.input = _norm(layer.input_layernorm)
        self.after = _norm(layer.post_attention_layernorm)
        norms = (_norm(attention.q_norm), _norm(attention.k_norm)) if hasattr(attention, "q_norm") else None
        config = attention.config
        self.heads = Heads(
            config.num_attention_heads, config.num_key_value_heads, attention.head_dim, attention.scaling, norms
        )
        self.qkv, self.gate_up = (Group(modules) for modules in _grouped(layer))
        self.output, self.down = Group([attention.o_proj]), Group([mlp.down_proj])
        self.plain = layer.forward
        layer.forward = MethodType(self.forward, layer)

    def release(self) -> None:
        """Put everything back."""
        del self.layer.forward
        self.qkv.release()
        self.gate_up.release()

    def forward(self, _: Any, hidden_states: torch.Tensor, *args: Any, **named: Any) -> Any:
        """Called by the model in place of its own; without documents, that is what happens."""
        bounds, cached = named.get("cu_seq_lens_q"), named.get("past_key_values")
        if bounds is None or cached is not None or args or hidden_states.dtype != self.qkv.weight.dtype:
            return self.plain(hidden_states, *args, **named)
        cos, sin = (angles[0, :, : angles.shape[-1] // 2].float() for angles in named["position_embeddings"])
        arguments = (hidden_states[0], cos, sin, bounds.diff().tolist())
        with torch.autocast(hidden_states.device.type, enabled=False):
            if getattr(self.layer, "gradient_checkpointing", False) and self.layer.training and torch.is_grad_enabled():
                # transformers wraps the forward of its classes, which an instance's own does not go through
                return checkpoint(self._forward, *arguments, use_reentrant=False)[None]
            return self._forward(*arguments)[None]

    def _forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        qkv = _NormedGroup.apply(x, self.input, self.qkv, *self.qkv.parameters())
        attended = _Attention.apply(qkv, cos, sin, lengths, self.heads)
        x = _AddedGroup.apply(attended, x, self.output, *self.output.parameters())
        both = _NormedGroup.apply(x, self.after, self.gate_up, *self.gate_up.parameters())
        y: torch.Tensor = _GatedGroup.apply(both, x, self.down, *self.down.parameters())
        return y


def _norm(module: Any) -> Norm:
    return Norm(module.weight.data, module.variance_epsilon)


def _grouped(layer: Any) -> tuple[list[nn.Module], list[nn.Module]]:
    """What makes q, k, v side by side, and gate and up."""
    attention, mlp = layer.self_attn, layer.mlp
    if hasattr(attention, "qkv_proj"):
        return [attention.qkv_proj], [mlp.gate_up_proj]
    return [attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]


_LAYERS = frozenset(f"{name}DecoderLayer" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3"))
"""Decoder layers that compute what `FastLayer` does."""


def refusal(layer: Any) -> str | None:
    """Why a decoder layer has no faster way; None if it has one."""
    name = type(layer).__name__
    if name not in _LAYERS or not type(layer).__module__.startswith("transformers.models."):
        return f"no such way for {name}"
    attention, mlp = layer.self_attn, layer.mlp
    config = attention.config
    if "forward" in layer.__dict__ or any(parameter.device.type != "cpu" for parameter in layer.parameters()):
        return "the layer is not on a CPU, or is changed already"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    if attention.attention_dropout or getattr(config, "resid_pdrop", 0.0):
        return "it drops attention or residuals"
    norms = [module for name, module in layer.named_modules() if name.endswith("norm")]
    if any(parameter.requires_grad for norm in norms for parameter in norm.parameters()):
        return "norms are trained"
    groups = _grouped(layer)
    members = [*groups[0], attention.o_proj, *groups[1], mlp.down_proj]
    reasons = [reason for member in members if (reason := Member.refusal(member))]
    return reasons[0] if reasons else None
