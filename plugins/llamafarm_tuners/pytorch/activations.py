"""What the backward pass needs of the forward pass, in bytes for each token and transformer layer. Imports no torch.

The figures are read off the code that computes: `fast/_layers.py` and `fast/_group.py` where decoder layers are fused,
else the modules of transformers and PEFT, whose saved tensors were counted with
`torch.autograd.graph.saved_tensors_hooks`. With h the hidden size, q and k the sizes of all query and all key heads, i
that of the feed-forward block, H the number of heads, b the bytes of a value:

- norms: the input, h b, twice; where norms are trained the normed input too, h b, twice
- attention: queries, keys, values and the result, (2 q + 2 k) b; the sums of the scores, 4 H
- feed-forward: gate, activated gate and up, 3 i b; without a gate what goes into the activation, i b
- linear layers whose weight is trained: their inputs; those with an adapter: their inputs after dropout, or as one step
  with it (`fast/_adapted.py`) their inputs, low-rank values, and a bit for each entry of what dropout goes over (a byte
  where no kernels are compiled)
- fused layers: gate and up alone, 2 i b; nothing of adapters but their low-rank values and a bit for each entry of
  what dropout goes over (or a byte); of DoRA what layers gave out before bias and residual, and where inputs are
  dropped another such result of each adapter; what a norm behind attention or feed-forward was given, h b each
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llamafarm.estimate.adapters import Trained
from llamafarm.estimate.architecture import Architecture

Path = Literal["fused", "generic"]

_LEFT = 1.7
"""Of these two, what stays behind as gaps on a CPU: measured between 1.3 and 2.0."""
_GATED = frozenset({"gate_proj", "gate_up_proj"})
_SANDWICHED = frozenset({"gemma2", "gemma3_text"})
FUSED_ARCHITECTURES = _SANDWICHED | {
    *("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "granite", "smollm3", "ministral"),
}
"""Architectures of which `fast/_decoder.py` knows the decoder layer."""
_NORMED_HEADS = frozenset({"qwen3", "gemma3_text"})


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes for each token of one transformer layer.

    Attributes:
        saved: Kept until the backward pass.
        passing: Made and given back within the layer's forward pass.
        back: Made and given back within its backward pass.
        entry: What goes into the layer: all that is kept of it with gradient checkpointing.
    """

    saved: float
    passing: float
    back: float
    entry: float


@dataclass(frozen=True, slots=True)
class Formats:
    """Bytes of a value.

    Attributes:
        stream: Of the residual stream.
        product: Of what linear layers give out.
        norm: Of what normalizations keep.
        mask: Of what dropout keeps for each entry besides its result: a noise on CPUs, a byte on GPUs.
        compiled: Whether there are kernels for this processor.
    """

    stream: float
    product: float
    norm: float
    mask: float
    compiled: bool


def fused(architecture: Architecture, found: Trained, formats: Formats, ranks: float, *, dora: bool = False) -> Kept:
    """Of a decoder layer that `fast/_decoder.py` computes; its attention is in float32."""
    h, i, b = architecture.hidden, architecture.intermediate, formats.stream
    q, k = _heads(architecture)
    attention = 4.0 * (q + 2 * k) + q * b + 4.0 * architecture.heads
    sandwiched, heads = architecture.model_type in _SANDWICHED, (q + 2 * k) * b
    kept_heads = architecture.model_type in _NORMED_HEADS or (dora and not found.dropout)
    kept_results = sandwiched or (dora and not found.dropout)
    results = sum(linear.outputs for linear, _ in found.adapted) * b if dora and found.dropout else 0.0
    saved = 2 * h * b + attention + heads * kept_heads + 2 * h * b * kept_results + 2 * i * b
    saved += _masks(found, formats) + ranks * b + results
    # _GatedGroup.backward: product, its gradient, share, active, dropped input, and the gradients of gate and up
    return Kept(saved, (h + q + 2 * k) * b, 7 * i * b + 2 * h * b, h * b)


def generic(
    architecture: Architecture, found: Trained, formats: Formats, ranks: float, *, joined: bool = False
) -> Kept:
    """Of a layer as transformers computes it, and PEFT, or (`joined`) `fast/_adapted.py` what has adapters."""
    h, i, b = architecture.hidden, architecture.intermediate, formats.product
    q, k = _heads(architecture)
    gated = any(linear.name in _GATED for linear in architecture.linears)
    saved = 2.0 * h * formats.norm * (2 if found.norms else 1)
    saved += (2 * q + 2 * k) * b + 4.0 * architecture.heads + (3 if gated else 1) * i * b
    inputs = h * b + q * b + h * b + i * b  # of query, key and value together; of output; of gate and up; of down
    if found.share:
        saved += inputs * found.share
    if found.adapted and joined:
        adapted = sum(linear.inputs for linear, _ in found.adapted)
        saved += min(inputs, adapted * b) + _masks(found, formats) + ranks * b
    elif found.adapted:
        adapted = sum(linear.inputs for linear, _ in found.adapted)
        shared = formats.product == formats.stream  # else each adapter has a copy of its own in its format
        whole = adapted * b if found.dropout or not shared else min(inputs, adapted * b)
        saved += whole + (adapted * formats.mask if found.dropout else 0.0) + ranks * b
    # an adapted layer's own product, the adapter's and the scaled one: two of them are gone when the sum is there
    apart = found.adapted and not joined
    passing = _LEFT * b * sum(linear.outputs for linear, _ in found.adapted) if apart else 2.0 * h * b
    return Kept(saved, passing, 7 * i * b + 2 * h * b, h * formats.stream)


def _masks(found: Trained, formats: Formats) -> float:
    """What `fast/_drop.py` keeps of what is dropped."""
    inputs = [linear.inputs for linear, _ in found.adapted] if found.dropout else []
    return sum(size / 8 if formats.compiled and size % 32 == 0 else float(size) for size in inputs)


def _heads(architecture: Architecture) -> tuple[int, int]:
    return architecture.heads * architecture.head_dim, architecture.kv_heads * architecture.head_dim
