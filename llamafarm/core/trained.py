"""Load a saved model as it was trained: weights, adapter, and what its methods add. The one way all commands do it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamafarm.api.components import Method
from llamafarm.core.load import load
from llamafarm.core.registry import Registry
from llamafarm.core.request import Request
from llamafarm.models.locate import locate
from llamafarm.models.record import read_methods

if TYPE_CHECKING:
    from llamafarm.api.values import DeviceSpec


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A saved model, loaded.

    Attributes:
        model: In evaluation mode on its device.
        tokenizer: Its tokenizer.
        methods: What made it, in the order they were applied; they have been put back.
    """

    model: Any
    tokenizer: Any
    methods: tuple[Method[Any], ...] = ()


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
    loaded = load_with_methods(name, registry, device=device, dtype=dtype)
    return loaded.model, loaded.tokenizer


def load_with_methods(
    name: str,
    registry: Registry,
    *,
    device: str | None = None,
    dtype: Any = None,
    rounded: Mapping[str, Any] | None = None,
) -> TrainedModel:
    """The same, with the methods that made it.

    Args:
        name: A folder, a hub id or `builtin:NAME`.
        registry: Where the methods that made it are found.
        device: torch's device type; None: what training would use here.
        dtype: torch dtype of the weights; None: bfloat16 where that costs no speed, else float32.
        rounded: How the base was quantized in training: it is loaded so and taken back to full precision.

    Raises:
        ModelError: If it is none of these, or an adapter does not fit its base.
        PluginError: If a method that made it is not installed.
    """
    from llamafarm.models._load import load_for_generation

    found = load(Request(None), registry).device if device is None else None
    model, tokenizer = load_for_generation(
        name,
        device=device or (found.type if found else "cpu"),
        dtype=_dtype(found) if dtype is None else dtype,
        rounded=rounded,
    )
    methods = methods_of(name, registry)
    folder = locate(name).folder
    restored: Any = model
    for method in methods:
        assert folder is not None
        restored = method.restore(restored, folder)
    return TrainedModel(restored, tokenizer, methods)


def methods_of(name: str, registry: Registry) -> tuple[Method[Any], ...]:
    """The methods that made a saved model, in the order they were applied.

    Raises:
        PluginError: If one of them is not installed.
    """
    folder = locate(name).folder
    found = []
    for record in read_methods(folder) if folder else ():
        component = registry.require("method", record.type)
        method = component(component.Config(**record.config))
        assert isinstance(method, Method)
        found.append(method)
    return tuple(found)


def _dtype(device: DeviceSpec | None) -> Any:
    """Half the memory where it costs no speed; exact elsewhere."""
    import torch

    return torch.bfloat16 if device is not None and device.details.get("bf16") else torch.float32
