"""Freeze a model but for some of its layers and modules."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from llamafarm.api import RunContext
from llamafarm.errors import ModelError, nearest
from llamafarm_methods._tokens import warn_of_new_tokens
from llamafarm_methods.freeze import FreezeConfig
from llamafarm_methods.targets import matching

_ALL = "all"


def thaw(model: nn.Module, config: FreezeConfig, run: RunContext) -> nn.Module:
    """Freeze the model but for what `config` names.

    Raises:
        ModelError: If a name matches nothing, or there are not as many layers.
    """
    model.requires_grad_(False)
    path, layers = layer_list(model)
    for layer in _chosen(layers, config.freeze_trainable_layers, path):
        for module in _inside(layer, config.freeze_trainable_modules):
            module.requires_grad_(True)
    outside = {name: module for name, module in model.named_modules() if name and not f"{name}.".startswith(f"{path}.")}
    outside = {name: module for name, module in outside.items() if not path.startswith(f"{name}.")}
    for name in config.freeze_extra_modules:
        for found in _named(name, outside, "freeze_extra_modules"):
            outside[found].requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError.of(
            "LF-MODEL-077",
            "the method freeze leaves nothing to train",
            hint="set freeze_trainable_layers above 0, or name freeze_extra_modules",
        )
    _tell_of_tied(model, run)
    warn_of_new_tokens(model, run, "freeze_extra_modules")
    return model


def layer_list(model: nn.Module) -> tuple[str, Sequence[nn.Module]]:
    """Path of the list of transformer layers, and the layers.

    Raises:
        ModelError: If the model has no list of layers.
    """
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ModelError.of(
            "LF-MODEL-075", "this model keeps its layers in no list, so that they cannot be counted", hint="use full"
        )
    # the outermost list is that of the layers; lists of experts and the like are inside of it
    path, layers = min(lists, key=lambda entry: (entry[0].count("."), -len(entry[1])))
    return path, list(layers)


def _chosen(layers: Sequence[nn.Module], wanted: int, path: str) -> Sequence[nn.Module]:
    if abs(wanted) > len(layers):
        raise ModelError.of(
            "LF-MODEL-076",
            f"freeze_trainable_layers {wanted}: the model has {len(layers)} layers ({path})",
            hint="the last n are trained, the first n if it is negative",
        )
    return layers[: -wanted if wanted < 0 else 0] if wanted <= 0 else layers[-wanted:]


def _inside(layer: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    if _ALL in names:
        return [layer]
    modules = {name: module for name, module in layer.named_modules() if name}
    return [modules[found] for name in names for found in _named(name, modules, "freeze_trainable_modules")]


def _named(name: str, modules: dict[str, nn.Module], option: str) -> list[str]:
    found = matching(name, modules)
    if not found:
        leaves = sorted({path.rpartition(".")[2] for path, module in modules.items() if list(module.parameters())})
        guess = nearest(name, leaves)
        raise ModelError.of(
            "LF-MODEL-022",
            f"{option} {name!r}: no module there has that name",
            hint=f"{guess} there are {', '.join(leaves)}".strip(),
        )
    return found


def _tell_of_tied(model: nn.Module, run: RunContext) -> None:
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if embedding is None or head is None or head.weight is not embedding.weight or not head.weight.requires_grad:
        return
    run.emit("notice", message="embedding and output head are one weight in this model: both are trained")
