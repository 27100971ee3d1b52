"""The transformers model within adapters, and what it can do. Nothing heavy is imported here."""

from __future__ import annotations

import inspect
from typing import Any


def transformers_model(model: Any) -> Any:
    """The transformers model within PEFT's wrapper, its adapters still in place; the model itself without one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def can_select_logits(model: Any) -> bool:
    """Whether the model computes logits for chosen positions only (`logits_to_keep`)."""
    return "logits_to_keep" in inspect.signature(transformers_model(model).forward).parameters
