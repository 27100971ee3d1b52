"""Frozen weights of linear layers with a common input, side by side: as they are, or packed by bitsandbytes.

Packed weights are unpacked where a product needs them, once in each direction, into the format of their products, and
let go again.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import nn

from llamafarm_tuners.pytorch.fast._linear import product
from llamafarm_tuners.pytorch.fast._pages import let_go

_FORMATS = (torch.float32, torch.bfloat16)


def times(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x @ weight.T + bias` in the format of the weight, given back in that of x.

    Args:
        x: (tokens, in).
        weight: (out, in).
        bias: (out,).
    """
    return product(x.to(weight.dtype), weight, bias).to(x.dtype)


def packing(layer: nn.Module) -> str | None:
    """`4 bits` or `8 bits` if bitsandbytes packed a layer's weights."""
    if type(layer).__module__ != "bitsandbytes.nn.modules":
        return None
    return {"Linear4bit": "4 bits", "Linear8bitLt": "8 bits"}.get(type(layer).__name__)


def refused_base(layer: Any) -> str | None:
    """Why a linear layer's weights cannot be used here; None if they can."""
    packed = packing(layer)
    if packed is None and type(layer) is not nn.Linear:
        origin = type(layer).__module__.split(".")
        kind = f"of {origin[2]}" if origin[:2] == ["peft", "tuners"] else f"of type {type(layer).__name__}"
        return f"linear layers {kind}"
    if any(parameter.requires_grad for parameter in layer.parameters()):
        return "the base is trained"
    if packed == "4 bits":
        state = layer.weight.quant_state
        if state is None or getattr(state, "packing_format_for_cpu", False):
            return "4-bit weights that are not packed, or packed again for inference"
        if layer.compute_dtype not in _FORMATS or tuple(state.shape) != (layer.out_features, layer.in_features):
            return f"4-bit weights with products in {layer.compute_dtype}"
    return "8-bit weights that are kept in 16 bits" if packed == "8 bits" and layer.state.has_fp16_weights else None


class Frozen:
    """Weights of several layers as one matrix.

    Where none is packed, the layers' own weights are views of one matrix while it lasts, so that nothing is stored
    twice: what they were is let go, also where it stands in a mapped file.

    Attributes:
        sizes: Outputs of each layer.
        bias: (sum of outputs,); None if no layer has one.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._layers: list[Any] = list(layers)
        self._kinds = {packing(layer) for layer in layers}
        self.sizes = [layer.out_features for layer in layers]
        self.bias = _side_by_side([layer.bias for layer in layers], self.sizes)
        self._whole: torch.Tensor | None = None
        if self._kinds == {None}:
            weights = [layer.weight.data for layer in layers]
            self._whole = weights[0] if len(weights) == 1 else torch.cat(weights)
            self._replace(self._whole.split(self.sizes))
            let_go(weights if len(weights) > 1 else [])

    def release(self) -> None:
        """Give the layers weights of their own again."""
        if self._whole is not None:
            self._replace([layer.weight.data.clone() for layer in self._layers])

    @property
    def whole(self) -> torch.Tensor | None:
        """The matrix where none is packed."""
        return self._whole

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether inputs in a format are what the layers take now."""
        if self._whole is not None:
            return bool(dtype == self._whole.dtype)
        # in evaluation bitsandbytes rounds what goes into 8-bit layers to 8 bits too: that is left to it
        rounds = any(packing(layer) == "8 bits" and not layer.training for layer in self._layers)
        return dtype in _FORMATS and not rounds

    def matrix(self, dtype: torch.dtype) -> torch.Tensor:
        """(sum of outputs, in): for inputs in a format."""
        if self._whole is not None:
            return self._whole
        parts = [_unpacked(layer, dtype) for layer in self._layers]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _replace(self, weights: Sequence[torch.Tensor]) -> None:
        if len(self._layers) > 1:
            for layer, weight in zip(self._layers, weights, strict=True):
                layer.weight.data = weight


def _unpacked(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """(out, in): what the layer multiplies inputs in a format with."""
    kind = packing(layer)
    if kind == "4 bits":
        from bitsandbytes.functional import dequantize_4bit

        state = copy(layer.weight.quant_state)
        state.dtype = layer.compute_dtype  # else it is rounded to the format that it was packed from
        weight: torch.Tensor = dequantize_4bit(layer.weight.data, state)
        return weight
    if kind == "8 bits":  # an entry counts 1/127 of its row's scale
        state = layer.state if layer.state.CB is not None else layer.weight
        return state.CB.to(dtype).mul_(state.SCB.to(dtype)[:, None] / 127)
    return layer.weight.data.to(dtype)


def _side_by_side(biases: Sequence[torch.Tensor | None], sizes: Sequence[int]) -> torch.Tensor | None:
    given = [bias.data for bias in biases if bias is not None]
    if not given:
        return None
    zeros = [given[0].new_zeros(size) for size in sizes]
    return torch.cat([zero if bias is None else bias.data for bias, zero in zip(biases, zeros, strict=True)])
