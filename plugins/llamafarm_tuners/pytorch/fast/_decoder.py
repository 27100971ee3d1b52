"""Whole decoder layers of the Llama family, put together from `_layers`, in place of a model's own.

A layer is: norm and grouped q, k, v; rotary positions and attention of documents; output projection and residual; norm
and grouped gate and up; activation, down projection and residual. Families differ in what stands between: how norms
multiply, norms before a residual is added, a factor there, the activation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from llamafarm_tuners.pytorch._batches import KEPT
from llamafarm_tuners.pytorch.fast._capped import capped_documents
from llamafarm_tuners.pytorch.fast._drop import Among
from llamafarm_tuners.pytorch.fast._group import Group, refused_member
from llamafarm_tuners.pytorch.fast._layers import (
    ACTIVATIONS,
    AddedGroup,
    AddedNorm,
    Chosen,
    GatedGroup,
    Heads,
    Norm,
    NormedGroup,
    turned,
)
from llamafarm_tuners.pytorch.fast._linear import without_copies


@dataclass(frozen=True, slots=True)
class Family:
    """How a family's layers differ from Llama's.

    Attributes:
        shifted: Norms multiply by 1 + weight, in float32.
        sandwiched: Attention and feed-forward have a norm behind them too.
        capped: Scores of attention stay below a cap, and heads have no norms.
    """

    shifted: bool = False
    sandwiched: bool = False
    capped: bool = False


FAMILIES = {
    **dict.fromkeys(("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Granite", "SmolLM3", "Ministral"), Family()),
    "Gemma": Family(shifted=True),
    "Gemma2": Family(shifted=True, sandwiched=True, capped=True),
    "Gemma3": Family(shifted=True, sandwiched=True),
}
"""By what stands before `DecoderLayer` in the names of transformers."""


class FastLayer:
    """The faster way of one decoder layer; `forward` takes its place.

    Attributes:
        last: Nothing but a norm and the head follow: what is not wanted there needs no more than its keys and values.
    """

    def __init__(self, layer: Any, *, last: bool = False) -> None:
        self.layer, self.last = layer, last
        family, attention, config = FAMILIES[_family(layer)], layer.self_attn, layer.self_attn.config
        self.input, self.before, *self.behind = (_norm(norm, family) for norm in _norms(layer, family))
        head_norms = _head_norms(attention)
        norms = (_norm(head_norms[0], family), _norm(head_norms[1], family)) if head_norms else None
        self.heads = Heads(
            config.num_attention_heads, config.num_key_value_heads, attention.head_dim, attention.scaling, norms
        )
        self.cap: float | None = attention.attn_logit_softcapping if family.capped else None
        self.turned = bool(getattr(attention, "use_rope", True))
        self.factor = float(getattr(layer, "residual_multiplier", 1.0))
        self.activation = ACTIVATIONS[_activation(config)]
        self.groups = [Group(modules) for modules in _grouped(layer)]
        self.plain = layer.forward
        layer.forward = MethodType(self.forward, layer)

    def release(self) -> None:
        """Put everything back."""
        del self.layer.forward
        for group in self.groups:
            group.release()

    def forward(self, _: Any, hidden_states: torch.Tensor, *args: Any, **named: Any) -> Any:
        """Called by the model in place of its own; without documents, that is what happens."""
        bounds, cached = named.get("cu_seq_lens_q"), named.get("past_key_values")
        taken = all(group.takes(hidden_states.dtype) for group in self.groups)
        if bounds is None or cached is not None or args or not taken:
            with without_copies() if any(group.merged for group in self.groups) else nullcontext():
                return self.plain(hidden_states, *args, **named)
        cos, sin = (angles[0, :, : self._pairs(angles)].float() for angles in named["position_embeddings"])
        arguments = (hidden_states[0], cos, sin, bounds.diff().tolist(), self._kept(len(hidden_states[0]), named))
        with torch.autocast(hidden_states.device.type, enabled=False):
            if getattr(self.layer, "gradient_checkpointing", False) and self.layer.training and torch.is_grad_enabled():
                # transformers wraps the forward of its classes, which an instance's own does not go through
                return checkpoint(self._forward, *arguments, use_reentrant=False)[None]
            return self._forward(*arguments)[None]

    def _pairs(self, angles: torch.Tensor) -> int:
        """How many pairs of a head's entries are turned by the positions."""
        return angles.shape[-1] // 2 if self.turned else 0

    def _kept(self, tokens: int, named: Mapping[str, Any]) -> torch.Tensor | None:
        """The tokens to go on with after attention; None for all, as hooks want it."""
        kept: torch.Tensor | None = named.get(KEPT) if self.last else None
        all_of_them = kept is None or len(kept) == tokens
        return None if all_of_them or self.layer._forward_hooks else kept  # noqa: SLF001  # no other way

    def _forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        lengths: Sequence[int],
        kept: torch.Tensor | None,
    ) -> torch.Tensor:
        tokens = len(x)
        qkv, output, gate_up, down = self.groups
        heads = NormedGroup.apply(x, self.input, qkv, None, *qkv.parameters())
        attended = self._attended(heads, cos, sin, lengths)
        among = None if kept is None else Among(tokens, kept)
        if kept is not None:
            attended, x = Chosen.apply(attended, kept), Chosen.apply(x, kept)
        y = AddedGroup.apply(attended, self._added(x), output, among, *output.parameters())
        x = self._joined(y, x, 0)
        both = NormedGroup.apply(x, self.before, gate_up, among, *gate_up.parameters())
        y = GatedGroup.apply(both, self._added(x), down, self.activation, among, *down.parameters())
        y = self._joined(y, x, 1)
        return y if kept is None else y.new_zeros(tokens, y.shape[1]).index_copy_(0, kept, y)

    def _attended(
        self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, lengths: Sequence[int]
    ) -> torch.Tensor:
        if self.cap is None:
            return self.heads.attention(heads, cos, sin, lengths)
        apart = heads.view(len(heads), -1, self.heads.size).transpose(0, 1).float()
        q, k, v = (apart[part] for part in self.heads.parts())
        parts = turned(q, cos, sin), turned(k, cos, sin), v
        result = capped_documents(parts, lengths, self.heads.scale, self.cap)
        return result.transpose(0, 1).reshape(len(heads), -1).to(heads.dtype)

    def _added(self, residual: torch.Tensor) -> torch.Tensor | None:
        """The residual if it can be added with the product before it."""
        return None if self.behind or self.factor != 1.0 else residual

    def _joined(self, y: torch.Tensor, residual: torch.Tensor, which: int) -> torch.Tensor:
        """Result and residual, if they are not one already."""
        if self.behind:
            joined: torch.Tensor = AddedNorm.apply(y, residual, self.behind[which])
            return joined
        return y if self.factor == 1.0 else residual.add(y, alpha=self.factor)


def _family(layer: Any) -> str:
    name = type(layer).__name__
    known = name.endswith("DecoderLayer") and type(layer).__module__.startswith("transformers.models.")
    return name.removesuffix("DecoderLayer") if known else name


def _norms(layer: Any, family: Family) -> list[nn.Module]:
    """Before attention and feed-forward; then, if the family has them, behind both."""
    if not family.sandwiched:
        return [layer.input_layernorm, layer.post_attention_layernorm]
    before = [layer.input_layernorm, layer.pre_feedforward_layernorm]
    return [*before, layer.post_attention_layernorm, layer.post_feedforward_layernorm]


def _head_norms(attention: Any) -> list[nn.Module]:
    return [attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else []


def _norm(module: Any, family: Family) -> Norm:
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return Norm(module.weight.data.float() + 1 if family.shifted else module.weight.data, eps)


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def _grouped(layer: Any) -> list[list[nn.Module]]:
    """What makes q, k, v side by side; the output projection; gate and up; what leads down again."""
    attention, mlp = layer.self_attn, layer.mlp
    if hasattr(attention, "qkv_proj"):
        return [[attention.qkv_proj], [attention.o_proj], [mlp.gate_up_proj], [mlp.down_proj]]
    heads = [attention.q_proj, attention.k_proj, attention.v_proj]
    return [heads, [attention.o_proj], [mlp.gate_proj, mlp.up_proj], [mlp.down_proj]]


def refusal(layer: Any) -> str | None:
    """Why a decoder layer has no faster way; None if it has one."""
    name = _family(layer)
    if name not in FAMILIES:
        return f"no such way for {type(layer).__name__}"
    if "forward" in layer.__dict__ or any(parameter.device.type != "cpu" for parameter in layer.parameters()):
        return "the layer is not on a CPU, or is changed already"
    attention, config = layer.self_attn, layer.self_attn.config
    if _activation(config) not in ACTIVATIONS:
        return f"its activation is {_activation(config)}"
    if attention.attention_dropout or getattr(config, "resid_pdrop", 0.0):
        return "it drops attention or residuals"
    norms = [*_norms(layer, FAMILIES[name]), *_head_norms(attention)]
    if any(parameter.requires_grad for norm in norms for parameter in norm.parameters()):
        return "norms are trained"
    members = [member for group in _grouped(layer) for member in group]
    return next((reason for member in members if (reason := refused_member(member))), None)
