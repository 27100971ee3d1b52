"""Load a saved model as it was trained: weights, adapter, and what its methods add. The one way all commands do it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafarm.api.components import Method
from llamafarm.core.load import load
from llamafarm.core.registry import Registry
from llamafarm.core.request import Request
from llamafarm.models.locate import locate
from llamafarm.models.record import read_methods

if TYPE_CHECKING:
    from llamafarm.api.values import DeviceSpec


def load_trained(name: str, registry: Registry, *, device: str | None = None, dtype: Any = None) -> tuple[Any, Any]:
    """Load a base model, a trained model, an adapter with its base, or a checkpoint of either.

    Args:
        name: A folder, a hub id or `builtin:NAME`.
        registry: Where the methods that made it are found.
        device: torch's device type; None: what training would use here.
        dtype: torch dtype of the weights; None: bfloat16 where that costs no speed, else float32.

    Returns:
        The model in evaluation mode on its device, and its tokenizer.

    Raises:
        ModelError: If it is none of these, or an adapter does not fit its base.
        PluginError: If a method that made it is not installed.
    """
    from llamafarm.models._load import load_for_generation

    found = load(Request(None), registry).device if device is None else None
    model: Any
    model, tokenizer = load_for_generation(
        name,
        device=device or (found.type if found else "cpu"),
        dtype=_dtype(found) if dtype is None else dtype,
    )
    return restored(model, name, registry), tokenizer


def restored(model: Any, name: str, registry: Registry) -> Any:
    """The model with what its methods add beyond the saved weights.

    Raises:
        PluginError: If a method that made it is not installed.
    """
    folder = locate(name).folder
    if folder is None:
        return model
    for record in read_methods(folder):
        component = registry.require("method", record.type)
        method = component(component.Config(**record.config))
        assert isinstance(method, Method)
        model = method.restore(model, folder)
    return model


def _dtype(device: DeviceSpec | None) -> Any:
    """Half the memory where it costs no speed; exact elsewhere."""
    import torch

    return torch.bfloat16 if device is not None and device.details.get("bf16") else torch.float32
