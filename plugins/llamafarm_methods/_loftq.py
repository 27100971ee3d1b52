"""LoftQ on a base that is quantized already: s·B·A starts as the best product of rank r for what quantization took.

https://arxiv.org/abs/2310.08659 with one round. PEFT has the same for one kind of weights, on CUDA, without the scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open
from torch import nn

from llamafarm.api import RunContext, TrainingStart
from llamafarm.errors import ModelError
from llamafarm.models._files import files_of
from llamafarm_methods.config import LoraConfig


def begin(model: Any, _config: LoraConfig, _start: TrainingStart, run: RunContext) -> None:
    """Compare each layer with the weight that it was made of.

    Raises:
        ModelError: If the base is not quantized, or its files are not at hand.
    """
    if not getattr(model, "is_quantized", False):
        message = "loftq makes up for what quantization takes from a base, and this one is not quantized"
        raise ModelError.of("LF-MODEL-205", message, hint="take the method qlora, or another init_lora_weights")
    files = _places(model)
    before = after = 0.0
    for path, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            packed = dequantize_module_weight(layer.get_base_layer()).float()
            lost = _read(files, path.removeprefix("base_model.model.")).to(packed.device, torch.float32) - packed
            with torch.no_grad():
                left = _start_from(layer, lost, packed)
            before, after = before + float(lost.square().sum()), after + float(left.square().sum())
    share = (after / before) ** 0.5 if before else 1.0
    run.emit("notice", message=f"loftq: the adapter starts with what quantization took, but for {share:.0%} of it")


def state(_model: nn.Module) -> Mapping[str, Any]:
    """Nothing: the weights say it."""
    return {}


def load_state(_model: nn.Module, _config: LoraConfig, _kept: Mapping[str, Any]) -> None:
    """Nothing: the weights say it."""


def put_back(_model: nn.Module, _folder: Path) -> bool:
    """Nothing: what is saved is what is trained."""
    return False


def written(_model: nn.Module, _folder: Path) -> None:
    """Nothing: what is saved is what is trained."""


def _start_from(layer: Any, lost: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """Set A and B, and return what they do not make up for."""
    rank, scale = layer.r["default"], layer.scaling["default"]
    u, s, v = torch.linalg.svd(lost, full_matrices=False)
    roots = (s[:rank] / scale).sqrt()
    a, b = roots[:, None] * v[:rank], u[:, :rank] * roots
    for matrix, value in ((layer.lora_A["default"], a), (layer.lora_B["default"], b)):
        matrix.weight.zero_()  # a layer may have fewer directions than the rank
        matrix.weight[: value.shape[0], : value.shape[1]].copy_(value)
    made = scale * b @ a
    if "default" in layer.lora_magnitude_vector:  # DoRA: the lengths are those of what it starts from
        magnitude = layer.lora_magnitude_vector["default"].weight
        magnitude.copy_((packed + made).norm(dim=1))
    return lost - made


def _places(model: Any) -> dict[str, Path]:
    """In which file each tensor of the base is."""
    folder = files_of(model.get_base_model())
    places: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")) if folder else ():
        with safe_open(file, framework="pt") as opened:
            places |= dict.fromkeys(opened.keys(), file)
    return places


def _read(places: Mapping[str, Path], layer: str) -> torch.Tensor:
    names = (f"{layer}.weight", f"{layer.partition('.')[2]}.weight")  # a base without head has no prefix
    name = next((name for name in names if name in places), None)
    if name is None:
        message = f"loftq needs the base's weights as they were, and {layer} is not in its files"
        raise ModelError.of("LF-MODEL-206", message, hint="take another init_lora_weights, or a base with these files")
    with safe_open(places[name], framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
    return tensor
