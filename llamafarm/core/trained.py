"""Load a saved model as it was trained: weights, adapter, and what its methods add. The one way all commands do it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from llamafarm.api.components import Method
from llamafarm.api.config import BaseModelConfig
from llamafarm.core.load import load
from llamafarm.core.registry import Registry
from llamafarm.core.request import Request
from llamafarm.models.first_token import asked_first_token, saved_first_token
from llamafarm.models.lean import lean_imports
from llamafarm.models.locate import locate
from llamafarm.models.record import read_base_dtype, read_methods, read_quantization

if TYPE_CHECKING:
    from llamafarm.api.values import DeviceSpec


class TrainedModel(NamedTuple):
    """A saved model, loaded.

    Attributes:
        model: In evaluation mode on its device.
        tokenizer: Its tokenizer.
        methods: What made it, in the order they were applied; they have been put back.
    """

    model: Any
    tokenizer: Any
    methods: tuple[Method[Any], ...] = ()


def load_trained(
    name: str,
    registry: Registry,
    *,
    device: str | None = None,
    dtype: Any = None,
    unpacked: bool = False,
    trust_remote_code: bool = False,
) -> TrainedModel:
    """Load a base model, a trained model, an adapter with its base, or a checkpoint of either.

    An adapter that was trained on a quantized base gets it quantized in the same way.

    Args:
        name: A folder, a hub id or `builtin:NAME`.
        registry: Where the methods that made it are found.
        device: torch's device type; None: what training would use here.
        dtype: torch dtype of the weights; None: what the base had in training where it had 16 bits, else bfloat16 on
            GPUs that compute in it, else float32.
        unpacked: Take a quantized base back to full precision: the values that quantization left, as plain weights.
        trust_remote_code: Let it, or the base that an adapter names, run code of its own; a flag alone sets this.

    Raises:
        ModelError: If it is none of these, or an adapter does not fit its base.
        PluginError: If a method that made it is not installed.
        SecurityError: If it wants to run code of its own and was not allowed to.
    """
    with lean_imports():
        from llamafarm.models._load import load_for_generation

    found = load(Request(None), registry).device if device is None else None
    folder = locate(name).folder
    model, tokenizer = load_for_generation(
        name,
        device=device or (found.type if found else "cpu"),
        dtype=_dtype(found, base_dtype_of(name)) if dtype is None else dtype,
        config=BaseModelConfig(trust_remote_code=trust_remote_code),
        quantization=read_quantization(folder) if folder else None,
        unpacked=unpacked,
    )
    methods = methods_of(name, registry)
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


def first_token_of(name: str, tokenizer: Any, registry: Registry) -> int | None:
    """What every row of a saved model begins with, told without loading its weights; None: nothing special.

    Raises:
        ModelError: If the tokenizer does not have it.
        PluginError: If a method that made it is not installed.
    """
    methods = methods_of(name, registry)
    folder = locate(name).folder
    return asked_first_token(methods, tokenizer) if methods or folder is None else saved_first_token(folder)


def base_dtype_of(name: str) -> str | None:
    """The 16-bit format that the base of a saved adapter had in training; None: it had none, or nobody knows."""
    folder = locate(name).folder
    return read_base_dtype(folder) if folder else None


def _dtype(device: DeviceSpec | None, trained: str | None) -> Any:
    """As it was trained; else half the memory on GPUs, where it costs no speed, and full precision on CPUs."""
    import torch

    if trained is not None:
        return getattr(torch, trained)
    small = device is not None and device.type != "cpu" and device.details.get("bf16")
    return torch.bfloat16 if small else torch.float32
