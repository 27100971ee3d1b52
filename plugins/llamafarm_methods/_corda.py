"""CorDA: the adapter takes over the part of each weight that the rows use most (or least); the base keeps the rest.

https://arxiv.org/abs/2406.05223, computed by PEFT. What the base gave away, s·B₀·A₀, is remembered: an adapter of twice
the rank, [B, -B₀]·[A; A₀], does on the base as it was what the trained one does on the rest, and is what is saved.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.corda import preprocess_corda
from peft.utils import transpose
from safetensors.torch import load_file, save_file
from torch import nn

from llamafarm.api import RunContext, TrainingStart
from llamafarm.errors import ModelError
from llamafarm.models.adapter_config import FILE, WEIGHTS
from llamafarm_methods.beginnings import CordaConfig
from llamafarm_methods.config import LoraConfig

_GIVEN = "llamafarm_given_away"
Pair = tuple[torch.Tensor, torch.Tensor]


def begin(model: Any, config: LoraConfig, start: TrainingStart, run: RunContext) -> None:
    """Measure the rows, and take each weight apart.

    Raises:
        ModelError: If a layer has fewer inputs or outputs than the rank, or the rows show nothing.
    """
    layers = _layers(model)
    for path, layer in layers.items():
        if layer.r["default"] > min(layer.in_features, layer.out_features):
            name, sizes = path.removeprefix("base_model.model."), f"{layer.in_features} to {layer.out_features}"
            message = f"corda cannot take {layer.r['default']} directions out of {name} ({sizes})"
            hint = "lower r, or give that layer a lower one in rank_pattern"
            raise ModelError.of("LF-MODEL-203", message, hint=hint)
    _measure(model, layers, config.corda_config or CordaConfig(), start)
    given: dict[str, Pair] = {}
    for path, layer in layers.items():
        weight = layer.get_base_layer().weight
        whole = weight.data
        layer.corda_init("default", "corda")
        weight = layer.get_base_layer().weight
        weight.data = whole
        given[path] = (
            layer.lora_A["default"].weight.detach().cpu().clone(),
            layer.lora_B["default"].weight.detach().cpu().clone(),
        )
    _give_away(model, given)
    run.emit("notice", message=f"corda: {len(layers)} layers taken apart by what the rows make of them")


def _measure(model: Any, layers: Mapping[str, LoraLayer], config: CordaConfig, start: TrainingStart) -> None:
    """Leave each base layer its decomposition, where `corda_init` finds it."""
    # PEFT looks for layers by name in a model without adapters: here are the layers alone, each under a name of its own
    names = {f"layer{number}": layer for number, layer in enumerate(layers.values())}
    bare = nn.ModuleDict({name: layer.get_base_layer() for name, layer in names.items()})
    settings = peft.LoraConfig(
        target_modules=list(names),
        rank_pattern={name: int(layer.r["default"]) for name, layer in names.items()},
        init_lora_weights="corda",
        corda_config=peft.tuners.lora.config.CordaConfig(corda_method=config.corda_method),
    )

    def measure() -> None:
        for batch in islice(start.batches(1), config.samples):  # PEFT takes one row at a time
            model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False)

    training = model.training
    model.eval()
    try:
        preprocess_corda(bare, settings, run_model=measure)
    except (ValueError, RuntimeError) as error:
        raise ModelError.of("LF-MODEL-204", f"corda found nothing to go by in the rows: {error}") from error
    finally:
        model.train(training)


def state(model: nn.Module) -> Mapping[str, Any]:
    """What the base gave away."""
    given: Mapping[str, Pair] = getattr(model, _GIVEN, {})
    return {path: {"A": pair[0], "B": pair[1]} for path, pair in given.items()}


def load_state(model: Any, _config: LoraConfig, kept: Mapping[str, Any]) -> None:
    """Take the same away again; nothing, if it is away."""
    if not getattr(model, _GIVEN, None):
        layers = _layers(model)
        _give_away(model, {path: (pair["A"], pair["B"]) for path, pair in kept.items() if path in layers})


def _give_away(model: Any, given: Mapping[str, Pair]) -> None:
    layers = _layers(model)
    for path, (a, b) in given.items():
        layer = layers[path]
        weight = layer.get_base_layer().weight
        part = layer.scaling["default"] * b.to(weight.device) @ a.to(weight.device)
        rest = weight.data.float() - transpose(part, layer.fan_in_fan_out).float()
        weight.data = rest.to(weight.dtype)
    setattr(model, _GIVEN, dict(given))
    settings = model.peft_config["default"]
    settings.init_lora_weights, settings.corda_config = True, None


def written(model: Any, folder: Path) -> None:
    """Make the saved adapter one for the base as it was: of twice the rank, with the same scale."""
    given: Mapping[str, Pair] = getattr(model, _GIVEN, {})
    tensors = load_file(folder / WEIGHTS)
    for path, (a, b) in given.items():
        for name, first, dim in ((f"{path}.lora_A.weight", a, 0), (f"{path}.lora_B.weight", -b, 1)):
            tensors[name] = torch.cat([tensors[name], first.to(tensors[name].dtype)], dim=dim).contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    file = folder / FILE
    settings = json.loads(file.read_text(encoding="utf-8"))
    factor = math.sqrt(2) if settings["use_rslora"] else 2
    settings["r"] *= 2
    settings["lora_alpha"] *= factor
    settings["rank_pattern"] = {name: 2 * rank for name, rank in settings["rank_pattern"].items()}
    settings["alpha_pattern"] = {name: factor * alpha for name, alpha in settings["alpha_pattern"].items()}
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def put_back(model: Any, folder: Path) -> bool:
    """Take the trained half of a saved adapter."""
    tensors = load_file(folder / WEIGHTS)
    for path, (a, b) in getattr(model, _GIVEN, {}).items():
        tensors[f"{path}.lora_A.weight"] = tensors[f"{path}.lora_A.weight"][: len(a)]
        tensors[f"{path}.lora_B.weight"] = tensors[f"{path}.lora_B.weight"][:, : b.shape[1]]
    peft.set_peft_model_state_dict(model, tensors)
    return True


def _layers(model: nn.Module) -> dict[str, Any]:
    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLayer)}
