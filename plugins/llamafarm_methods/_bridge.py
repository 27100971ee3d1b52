"""Put a bridged method into a model."""

from __future__ import annotations

from typing import Any

import peft
import torch
from torch import nn
from transformers import PreTrainedModel

from llamafarm.api import RunContext
from llamafarm.errors import ModelError
from llamafarm.models._adapter import without_idle_warnings
from llamafarm_methods._place import norm_layers, place, require_placed
from llamafarm_methods._tokens import warn_of_new_tokens
from llamafarm_methods.bridge import Bridge, PeftConfig
from llamafarm_methods.config import TargetConfig
from llamafarm_methods.targets import named


def attach(model: Any, bridge: Bridge, config: PeftConfig | TargetConfig, run: RunContext) -> nn.Module:
    """The model with what is trained.

    Raises:
        ModelError: If a name matches nothing, or an option does not fit the model's sizes.
    """
    if getattr(model, "is_quantized", False):
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    arguments = {**bridge.fixed, **{name: getattr(config, name) for name in bridge.options}}
    paths: list[str] = []
    if isinstance(config, TargetConfig):
        paths, placing = _placing(model, bridge, config)
        arguments |= placing
        if "feedforward_modules" in arguments:
            names = arguments["feedforward_modules"]
            arguments["feedforward_modules"] = sorted(named(names, paths, "feedforward_modules")) if names else []
    try:
        with without_idle_warnings():
            adapted: nn.Module = peft.get_peft_model(model, _config_class(bridge)(task_type="CAUSAL_LM", **arguments))
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ModelError.of(
            "LF-MODEL-078",
            f"{bridge.type} does not fit this model: {error}",
            hint="sizes of blocks and groups have to divide those of the layers",
        ) from error
    if paths:
        require_placed(adapted, paths)
    warn_of_new_tokens(model, run, "modules_to_save" if paths else "")
    return hide_virtual_tokens(adapted, bridge)


def hide_virtual_tokens(model: Any, bridge: Bridge) -> Any:
    """Let the model give logits for the row's own tokens alone, as every other model does.

    PEFT puts a learned prompt before the row and gives logits for both; the first of them nobody asked for, and a
    choice of positions (`logits_to_keep`) would mean the wrong ones.
    """
    if bridge.peft not in ("PromptTuningConfig", "PromptEncoderConfig"):
        return model
    count = int(model.active_peft_config.num_virtual_tokens)

    def shifted(
        _: nn.Module, given: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kept = options.get("logits_to_keep")
        if not isinstance(kept, torch.Tensor):
            return given, options
        return given, {**options, "logits_to_keep": torch.where(kept < 0, kept, kept + count)}  # or from the end

    def trimmed(_: nn.Module, _given: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
        kept = options.get("logits_to_keep")
        if kept is None or (isinstance(kept, int) and kept == 0):
            output.logits = output.logits[:, count:]
        return output

    model.register_forward_pre_hook(shifted, with_kwargs=True)
    model.register_forward_hook(trimmed, with_kwargs=True)
    return model


def _placing(model: PreTrainedModel, bridge: Bridge, config: TargetConfig) -> tuple[list[str], dict[str, Any]]:
    """The layers that are adapted, and what PEFT is told: whole paths, which every method understands."""
    placement = place(model, config, norm_layers(model) if bridge.layers == "norm" else None)
    arguments: dict[str, Any] = {
        "target_modules": list(placement.paths),
        "modules_to_save": list(placement.saved) or None,
    }
    if "fan_in_fan_out" in _config_class(bridge).__dataclass_fields__:
        arguments["fan_in_fan_out"] = placement.transposed
    return list(placement.paths), arguments


def _config_class(bridge: Bridge) -> Any:
    return getattr(peft, bridge.peft)
