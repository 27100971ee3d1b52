"""What ran in a layer → named matrices. Parts are told by what they do, not by what an architecture calls them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from llamafarm.capture._record import Attention, Call, LayerRecord

Named = Iterator[tuple[str, torch.Tensor]]

ATTENTION_FLOW = (
    "input_norm",
    "qkv",
    "q_rotated",
    "k_rotated",
    "k_repeated_for_gqa",
    "v_repeated_for_gqa",
    "attention_scores_pre_mask",
    "causal_mask",
    "attention_scores_masked",
    "attention_softmax",
    "attention_output",
    "attention_output_reshaped",
    "o_proj",
)
MLP_FLOW = ("post_attn_norm", "gate_up", "silu_output", "swiglu_product", "down_proj")


def named_matrices(record: LayerRecord) -> Named:
    """Each matrix of a layer with its name; what the layer does not have, or does in another way, is left out."""
    attention = record.attention
    assert attention is not None
    yield from _norms(record)
    inside = {id(module) for module in attention.module.modules()}
    before = [call for call in record.calls[: attention.at] if id(call.module) in inside and call.is_linear]
    after = [call for call in record.calls[attention.at :] if id(call.module) in inside and call.is_linear]
    yield from _projections(before, attention)
    yield from _attention(attention)
    if after:
        yield from _module("o_proj", after[0])
    yield from _mlp([call for call in record.calls if id(call.module) not in inside and not call.is_norm])


def _module(name: str, call: Call) -> Named:
    yield f"{name}_input", call.input
    yield f"{name}_output", call.output
    yield from _parameters(name, call.module)


def _parameters(name: str, module: nn.Module, rows: torch.Tensor | slice = slice(None)) -> Named:
    """Weight as (outputs, inputs), and bias where there is one; of some outputs only."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor):
        yield f"{name}_weight", (weight.T if isinstance(module, Conv1D) else weight)[rows]
    bias = getattr(module, "bias", None)
    if isinstance(bias, torch.Tensor):
        yield f"{name}_bias", bias[rows]


def _norms(record: LayerRecord) -> Named:
    """The norms of the layer itself; those inside attention (of queries and keys) keep their own names."""
    norms = [call for call in record.calls if call.is_norm]
    own = [call for call in norms if "." not in call.name]
    for index, call in enumerate(own):
        kind = "rmsnorm" if getattr(call.module, "bias", None) is None else "layernorm"
        roles = {0: f"input_{kind}", 1: f"post_attn_{kind}"} if len(own) == 2 else {}
        yield from _module(roles.get(index, call.name), call)
    for call in norms:
        if "." in call.name:
            yield from _module(call.name.replace(".", "_"), call)


def _projections(calls: Sequence[Call], attention: Attention) -> Named:
    """Queries, keys and values, fused and apart, however the architecture computes them."""
    if len(calls) == 1:
        (call,) = calls
        yield "qkv_input", call.input
        yield "qkv_output", call.output
        places = _places(call.output, attention)
        if not places:
            yield from _parameters("qkv", call.module)
        for name, rows in places.items():
            yield from _parameters(name, call.module, rows)
            yield f"{name}_output", call.output[..., rows]
            yield f"{name}_reshaped", _heads(call.output[..., rows], attention)
    elif len(calls) == 3:
        yield "qkv_input", calls[0].input
        yield "qkv_output", torch.cat([call.output for call in calls], dim=-1)
        for name, call in zip("qkv", calls, strict=True):
            yield from _parameters(name, call.module)
            yield f"{name}_output", call.output
            yield f"{name}_reshaped", _heads(call.output, attention)


def _places(fused: torch.Tensor, attention: Attention) -> dict[str, torch.Tensor]:
    """Which outputs of a fused projection are queries, keys and values: the arrangement in which the values match."""
    size, heads, groups = attention.query.shape[-1], attention.query.shape[1], attention.key.shape[1]
    every = torch.arange(fused.shape[-1])
    if len(every) != (heads + 2 * groups) * size:
        return {}
    candidates = [every.split([heads * size, groups * size, groups * size])]
    if heads == groups:
        candidates.append(tuple(part.flatten() for part in every.view(heads, 3, size).unbind(1)))
    for parts in candidates:
        if torch.equal(_heads(fused[..., parts[2]], attention), attention.value):
            return dict(zip("qkv", parts, strict=True))
    return {}


def _heads(flat: torch.Tensor, attention: Attention) -> torch.Tensor:
    return flat.unflatten(-1, (-1, attention.query.shape[-1])).transpose(1, 2)


def _attention(attention: Attention) -> Named:
    repeats = attention.query.shape[1] // attention.key.shape[1]
    key, value = (side.repeat_interleave(repeats, dim=1) for side in (attention.key, attention.value))
    yield "q_rotated", attention.query
    yield "k_rotated", attention.key
    yield "v", attention.value
    yield "k_repeated_for_gqa", key
    yield "v_repeated_for_gqa", value
    scores = attention.query @ key.transpose(2, 3) * attention.scaling
    masked = scores if attention.mask is None else scores + attention.mask
    # an architecture may do more to its scores (caps, sinks): then they are not these, and are left out
    if torch.allclose(masked.float().softmax(-1), attention.weights.float(), atol=_tolerance(attention.weights)):
        yield "attention_scores_pre_mask", scores
        if attention.mask is not None:
            yield "causal_mask", attention.mask
        yield "attention_scores_masked", masked
    yield "attention_softmax", attention.weights
    yield "attention_output", attention.output.transpose(1, 2)
    yield "attention_output_reshaped", attention.output.flatten(2)


def _tolerance(weights: torch.Tensor) -> float:
    """A few roundings of a number up to 1."""
    return 8 * float(torch.finfo(weights.dtype).eps)


def _mlp(calls: Sequence[Call]) -> Named:
    """Gate, up, activation and down; nothing of a mixture of experts, whose tokens go different ways."""
    linear = [call for call in calls if call.is_linear]
    activation = next((call for call in calls if _is_activation(call)), None)
    if len(linear) not in (2, 3) or activation is None:
        return
    *first, down = linear
    yield "gate_up_input", first[0].input
    if len(first) == 2:
        yield "gate_up_output", torch.cat([call.output for call in first], dim=-1)
        gate, up = sorted(first, key=lambda call: not torch.equal(call.output, activation.input))
        for name, call in (("gate", gate), ("up", up)):
            yield f"{name}_output", call.output
            yield from _parameters(name, call.module)
    else:
        yield "gate_up_output", first[0].output
        yield from _halves(first[0], activation)
    kind = "silu" if type(activation.module).__name__.casefold().startswith("silu") else "activation"
    yield f"{kind}_output", activation.output
    if activation.output.shape == down.input.shape and not torch.equal(activation.output, down.input):
        yield "swiglu_product" if kind == "silu" else "gated_product", down.input
    yield from _module("down_proj", down)


def _halves(call: Call, activation: Call) -> Named:
    """A fused gate and up projection: the half that the activation was given is the gate."""
    size = activation.input.shape[-1]
    if call.output.shape[-1] != 2 * size:
        yield from _parameters("up", call.module)
        return
    halves = [slice(0, size), slice(size, None)]
    gate, up = sorted(halves, key=lambda half: not torch.equal(call.output[..., half], activation.input))
    for name, half in (("gate", gate), ("up", up)):
        yield f"{name}_output", call.output[..., half]
        yield from _parameters(name, call.module, half)


def _is_activation(call: Call) -> bool:
    return not call.is_linear and not isinstance(call.module, nn.Dropout) and not list(call.module.parameters())
