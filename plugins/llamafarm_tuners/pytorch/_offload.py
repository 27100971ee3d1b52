"""Activations in main memory from the forward pass until the backward pass wants them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

SMALLEST = 2**16
"""Bytes below which a copy costs more than it frees."""


class _Away(NamedTuple):
    """A tensor that was copied to main memory.

    Attributes:
        copy: The copy; pinned, if it came from a GPU, so that the way there and back keeps nobody waiting.
        device: Where it belongs.
    """

    copy: torch.Tensor
    device: torch.device


class ActivationsAway(saved_tensors_hooks):  # type: ignore[misc]  # torch does not type it
    """While it lasts, what the forward pass keeps for the backward pass is kept in main memory.

    Weights stay where they are, and so do small tensors and those that repeat one value in many places. The mathematics
    are the same to the last bit. TRL has the same under the same name.

    One serves for all passes of a run. A weight that is given other memory later is copied like anything else.

    Attributes:
        bytes: How many were copied so far.
    """

    def __init__(self, model: nn.Module, smallest: int = SMALLEST) -> None:
        self.bytes = 0
        self._smallest = smallest
        self._weights = {
            tensor.untyped_storage().data_ptr() for part in (model.parameters(), model.buffers()) for tensor in part
        }
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor | _Away:
        size, storage = tensor.nbytes, tensor.untyped_storage()
        repeated = size > storage.nbytes()  # its copy would be larger than itself
        if size < self._smallest or repeated or storage.data_ptr() in self._weights:
            return tensor
        self.bytes += size
        copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return _Away(copy.copy_(tensor, non_blocking=True), tensor.device)

    def _unpack(self, kept: torch.Tensor | _Away) -> torch.Tensor:
        return kept.copy.to(kept.device, non_blocking=True) if isinstance(kept, _Away) else kept
