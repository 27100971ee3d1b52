"""Models that compute what is not finite: which weight it comes from."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import LogitsProcessor

from llamafarm.errors import NumericError


def first_not_finite(model: nn.Module, *, trained: bool = True) -> str | None:
    """The first weight that is not finite, by its name in the base model; None if all are. Reads all of them.

    Args:
        model: A base model, or one with adapters.
        trained: Look at those that are trained, too.
    """
    for name, weight in model.named_parameters():
        if weight.requires_grad and not trained:
            continue
        if weight.is_floating_point() and not weight.is_meta and not bool(torch.isfinite(weight).all()):
            return str(name).removeprefix("base_model.model.").replace(".base_layer.", ".")
    return None


def not_finite(model: nn.Module, what: str) -> NumericError:
    """The error for `what` a model computed that is not finite: it names the weight, if it is one."""
    name = first_not_finite(model)
    if name is not None:
        message = f"{what}: the model's own weight {name} is not finite"
        return NumericError.of("LF-NUMERIC-003", message, hint="fetch the model again, or take an earlier checkpoint")
    return NumericError.of("LF-NUMERIC-003", what, hint="compute in bf16 or fp32, and look whether the model is whole")


class Finite(LogitsProcessor):  # type: ignore[misc]  # transformers does not type it
    """A logits processor of transformers that changes nothing, and refuses logits that are NaN or infinite."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Look at (rows, vocabulary); -inf means that a token is ruled out.

        Raises:
            NumericError: If one is not in order.
        """
        if not bool((scores < math.inf).all()):
            raise not_finite(self._model, f"the logits of token {input_ids.shape[1] + 1} are not finite")
        return scores
