"""Watches a forward pass layer by layer: inputs and outputs of the real modules, and what attention is really given."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from llamafarm.errors import ModelError

_KERNEL = "llamafarm_capture"


@dataclass(frozen=True, slots=True)
class Call:
    """A module that ran: `input` and `output` are (rows, length, features)."""

    name: str
    module: nn.Module
    input: torch.Tensor
    output: torch.Tensor

    @property
    def is_linear(self) -> bool:
        """Whether it is a projection."""
        return isinstance(self.module, nn.Linear | Conv1D)

    @property
    def is_norm(self) -> bool:
        """Whether it normalizes."""
        return "norm" in type(self.module).__name__.casefold()


@dataclass(frozen=True, slots=True)
class Attention:
    """What attention is given and makes, by the architecture's own eager function.

    Attributes:
        at: How many modules of the layer had run before it.
        module: The layer's attention.
        query: (rows, heads, length, size), as rotated.
        key: (rows, key heads, length, size), as rotated.
        value: (rows, key heads, length, size).
        mask: Added to the scores; None if nothing is.
        scaling: What the scores are multiplied by.
        weights: (rows, heads, length, length): after the softmax.
        output: (rows, length, heads, size).
    """

    at: int
    module: nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    scaling: float
    weights: torch.Tensor
    output: torch.Tensor


@dataclass(slots=True)
class LayerRecord:
    """One layer's forward pass, in the order in which things ran."""

    calls: list[Call] = field(default_factory=list)
    attention: Attention | None = None


class Recorder:
    """Records each decoder layer that attends, and hands it on before the next one runs, so that one is in memory."""

    def __init__(self, model: Any, receive: Callable[[int, LayerRecord], None]) -> None:
        self._model, self._receive = model, receive
        self._current: LayerRecord | None = None
        self._done = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what the model does meanwhile.

        Raises:
            ModelError: At the end, if no layer's attention could be seen.
        """
        model = self._model
        before = model.config._attn_implementation  # noqa: SLF001  # where transformers keeps it
        AttentionInterface.register(_KERNEL, self._attend)
        AttentionMaskInterface.register(_KERNEL, eager_mask)
        layers = [module for module in model.base_model.modules() if isinstance(module, GradientCheckpointingLayer)]
        handles = [handle for layer in layers for handle in self._hooks(layer)]
        model.set_attn_implementation(_KERNEL)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            model.set_attn_implementation(before)
        if not self._done:
            raise ModelError.of(
                "LF-MODEL-100",
                f"{type(model).__name__} has no layer whose attention can be seen",
                hint="capture needs an architecture with transformers' attention interface",
            )

    def _hooks(self, layer: nn.Module) -> Iterator[Any]:
        yield layer.register_forward_pre_hook(self._begin)
        for name, module in layer.named_modules():
            if module is not layer and not any(True for _ in module.children()):
                yield module.register_forward_hook(self._ran(name))
        yield layer.register_forward_hook(self._end)

    def _begin(self, layer: nn.Module, args: Any) -> None:
        self._current = LayerRecord()

    def _end(self, layer: nn.Module, args: Any, output: Any) -> None:
        record, self._current = self._current, None
        if record is not None and record.attention is not None:
            self._receive(self._done, record)
            self._done += 1

    def _ran(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def ran(module: nn.Module, args: Any, output: Any) -> None:
            if self._current is not None and args and isinstance(output, torch.Tensor):
                self._current.calls.append(Call(name, module, args[0], output))

        return ran

    def _attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if own is None:
            raise ModelError.of("LF-MODEL-100", f"{type(module).__name__} has no eager attention", hint="see the docs")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        output, weights = own(module, query, key, value, attention_mask, scaling=scale, **kwargs)
        if self._current is not None:
            self._current.attention = Attention(
                len(self._current.calls), module, query, key, value, attention_mask, scale, weights, output
            )
        return output, weights
