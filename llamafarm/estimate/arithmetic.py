"""Arithmetic that fine-tuners share: bytes of stored weights and optimizer state, tokens of a batch, operations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llamafarm.estimate.architecture import Architecture

OPTIMIZER_BYTES: Mapping[str, float] = MappingProxyType(
    {
        "adamw_torch": 8.0,
        "adamw_torch_fused": 8.0,
        "paged_adamw_32bit": 8.0,
        "adamw_8bit": 2.0 + 2 * 4 / 256,  # two moments of 8 bits, and the scale of each block of 256 values
        "adamw_bnb_8bit": 2.0 + 2 * 4 / 256,
        "paged_adamw_8bit": 2.0 + 2 * 4 / 256,
        "sgd": 0.0,
    }
)
"""Bytes of state for each trained parameter; AdamW keeps two moments in float32."""

MULTIPLES_OF_PEAK = (0.25, 0.5)
"""What training usually reaches of a GPU's peak: the range that is told as long as nothing has been measured."""


def quantized_bytes(architecture: Architecture, quantization: Mapping[str, Any]) -> float:
    """Bytes of the layers' packed linear weights; biases stay beside them.

    bitsandbytes keeps, of 4-bit weights, a scale in float32 for each block of 64, or with double quantization one byte
    for it, and a float32 for each 256 of these; of 8-bit weights a float32 for each row.
    """
    weights = rows = biases = 0
    for linear in architecture.linears:
        weights += linear.count * linear.inputs * linear.outputs
        rows += linear.count * linear.outputs
        biases += linear.count * linear.outputs * linear.bias
    if quantization.get("load_in_8bit"):
        packed = weights + 4.0 * rows
    else:
        double = quantization.get("bnb_4bit_use_double_quant")
        packed = weights * (0.5 + (1 / 64 + 4 / (64 * 256) if double else 4 / 64))
    return architecture.layers * (packed + 4.0 * biases)


@dataclass(frozen=True, slots=True)
class Batches:
    """Tokens of the micro-batches of a run.

    Attributes:
        most: Of the largest that is to be expected.
        mean: Of all together, divided by their number.
        longest: Of the longest row.
        padded: Of the largest, were its rows padded to the longest.
        count: Micro-batches of an epoch.
    """

    most: float
    mean: float
    longest: int
    padded: float
    count: int


def micro_batches(lengths: Sequence[int], rows: int, size: int) -> Batches:
    """What micro-batches of `size` rows by chance hold, given the lengths of a sample of the rows.

    The largest of n sums of `size` lengths is expected near mean + sqrt(2 ln n) standard deviations (the bound for
    normal variables), and is never more than that of the longest rows.
    """
    size = min(size, rows)
    count = math.ceil(rows / size)
    mean = sum(lengths) / len(lengths)
    spread = math.sqrt(sum((length - mean) ** 2 for length in lengths) / len(lengths))
    longest = max(lengths)
    likely = size * mean + spread * math.sqrt(size) * math.sqrt(2 * math.log(max(count, 2)))
    whole = [*sorted(lengths, reverse=True), *[longest] * size][:size] if len(lengths) >= rows else [longest] * size
    return Batches(min(likely, float(sum(whole))), size * mean, longest, float(size * longest), count)


def packs(lengths: Sequence[int], rows: int, capacity: int, size: int) -> Batches:
    """The same for packs that hold as many whole rows as fit into `capacity` tokens."""
    tokens = rows * sum(lengths) / len(lengths)
    count = max(1, math.ceil(tokens / (0.95 * capacity)))  # packing leaves some tokens of each pack empty
    size = min(size, count)
    most = float(min(size * capacity, math.ceil(tokens)))
    return Batches(most, tokens / math.ceil(count / size), max(lengths), most, math.ceil(count / size))


def training_flops(
    architecture: Architecture,
    *,
    tokens: float,
    attended: float,
    learned: float,
    adapters: int,
    base_trained: float,
    head_trained: bool,
    recomputed: bool,
) -> float:
    """Operations of training on so many tokens, a multiplication and an addition counted as two.

    For each parameter of a linear layer and each token: 2 forward, 2 for the gradient of what goes in, 2 for that of
    the weight where it is trained. Attention multiplies each token with those before it, twice, and twice as often on
    the way back. The head works on learned tokens alone.

    Args:
        architecture: The model's.
        tokens: Of the whole training.
        attended: Tokens that a token sees, on average over all: about half of its row's length.
        learned: Share of the tokens that are learned.
        adapters: Parameters of the adapters.
        base_trained: Share of the layers' parameters that are trained themselves, 0 to 1.
        head_trained: Whether the output head is.
        recomputed: Whether the layers are computed a second time on the way back.
    """
    head = architecture.vocabulary * architecture.hidden
    body = architecture.active_parameters - head
    scores = 4.0 * architecture.layers * architecture.heads * architecture.head_dim * attended
    forward = 2.0 * body + scores + 2.0 * adapters
    backward = 2.0 * body * (1 + base_trained) + 2 * scores + 4.0 * adapters
    at_head = learned * head * (6.0 if head_trained else 4.0)
    return tokens * (forward * (2 if recomputed else 1) + backward + at_head)
