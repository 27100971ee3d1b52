"""Put LoRA adapters into a model through PEFT, leaving nothing to PEFT's defaults."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import peft
import torch
from torch import nn
from transformers import PreTrainedModel

from llamafarm.api import RunContext
from llamafarm.errors import ModelError
from llamafarm.models._adapter import repeatable
from llamafarm_methods._place import Placement, place, require_placed
from llamafarm_methods._tokens import with_new_tokens
from llamafarm_methods.beginnings import is_measured, takes_apart
from llamafarm_methods.config import LoraConfig
from llamafarm_methods.targets import matching, named


def attach_lora(
    model: PreTrainedModel, config: LoraConfig, run: RunContext, magnitude_only: Sequence[str] = ()
) -> nn.Module:
    """Return the model with adapters; they, and what the options name besides, are all that is trained.

    Args:
        model: The base.
        config: What was asked for.
        run: Is told of a scale that is too large.
        magnitude_only: Names of layers that get a magnitude and no adapter (DoRA).

    Raises:
        ModelError: If a name matches nothing, or the base cannot carry it.
    """
    _warn_of_scale(config, run)
    if getattr(model, "is_quantized", False):
        _refuse_on_quantized(model, config)
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    _require_tokens(model, config)
    placement = place(model, config)
    _require_patterns(config, placement.paths)
    plain = named(magnitude_only, placement.paths, "magnitude_only_modules") if magnitude_only else set()
    settings = with_new_tokens(_peft_config(config, placement, sorted(plain)), model, placement.paths, run)
    # a randomized decomposition is made anew whenever the adapter is loaded, and has to come out the same
    randomized = str(config.init_lora_weights).startswith("pissa_niter")
    with repeatable() if randomized else nullcontext():
        adapted = peft.get_peft_model(model, settings)
    require_placed(adapted, placement.paths)
    _keep_magnitudes_only(adapted, plain)
    _warn_of_biases(adapted, config, run)
    return adapted


def _peft_config(config: LoraConfig, placement: Placement, magnitude_only: Sequence[str]) -> peft.LoraConfig:
    layers = config.layers_to_transform
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.first_rank,
        lora_alpha=config.scale_numerator * config.first_rank / config.r,
        lora_dropout=config.dropout,
        target_modules=list(placement.targets),
        exclude_modules=list(placement.excluded) or None,
        bias=config.bias,
        modules_to_save=list(placement.saved) or None,
        layers_to_transform=list(layers) if layers is not None else None,
        layers_pattern=config.layers_pattern,
        rank_pattern={**dict.fromkeys(magnitude_only, 1), **config.rank_pattern},
        alpha_pattern=config.alphas,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        # what is measured before the first step takes its place; until then the adapter changes nothing
        init_lora_weights=True if is_measured(config.init_lora_weights) else config.init_lora_weights,
        trainable_token_indices=list(config.trainable_token_indices) or None,
        fan_in_fan_out=placement.transposed,
        ensure_weight_tying=placement.tied,
    )


def _keep_magnitudes_only(adapted: nn.Module, paths: set[str]) -> None:
    """Leave the layers a product B·A that is zero and stays it: PEFT knows no magnitude without one."""
    for path in paths:
        layer = adapted.get_submodule(f"base_model.model.{path}")
        for parts in (layer.lora_A, layer.lora_B, layer.lora_dropout):
            assert isinstance(parts, nn.ModuleDict)
        layer.lora_A.requires_grad_(False)
        layer.lora_B.requires_grad_(False)
        with torch.no_grad():
            layer.lora_B["default"].weight.zero_()
        layer.lora_dropout["default"] = nn.Identity()  # there is no adapter to drop the input of


def _require_tokens(model: PreTrainedModel, config: LoraConfig) -> None:
    if not config.trainable_token_indices:
        return
    embedding = model.get_input_embeddings()
    rows = int(embedding.weight.shape[0])
    if beyond := [index for index in config.trainable_token_indices if index >= rows]:
        raise ModelError.of(
            "LF-MODEL-070",
            f"trainable_token_indices {beyond}: the model's embedding has {rows} rows, numbered from 0",
            hint="llamafarm inspect shows the tokens and their numbers",
        )
    path = next(path for path, module in model.named_modules() if module is embedding)
    if any(matching(name, [path]) for name in config.modules_to_save):
        raise ModelError.of(
            "LF-MODEL-073",
            "modules_to_save trains the whole embedding, trainable_token_indices only some rows of it",
            hint="keep one of them",
        )


def _require_patterns(config: LoraConfig, paths: Sequence[str]) -> None:
    for option in ("rank_pattern", "alpha_pattern"):
        for name in getattr(config, option):
            named(name, paths, option)


def _refuse_on_quantized(model: nn.Module, config: LoraConfig) -> None:
    if takes_apart(config.init_lora_weights):
        raise ModelError.of(
            "LF-MODEL-023",
            f"init_lora_weights {config.init_lora_weights!r} takes the base's weights apart and cannot do so when "
            "they are quantized",
            hint="use true, gaussian, orthogonal or eva, or a base that is not quantized",
        )
    if config.use_dora and getattr(model, "is_loaded_in_8bit", False):
        raise ModelError.of(
            "LF-MODEL-074",
            "DoRA does not run on a base in 8 bits: bitsandbytes cannot give its weights back for it",
            hint="use 4 bits, or a base that is not quantized",
        )


def _warn_of_biases(adapted: nn.Module, config: LoraConfig, run: RunContext) -> None:
    trained = any(
        name.endswith("bias") and parameter.requires_grad and ".modules_to_save." not in name
        for name, parameter in adapted.named_parameters()
    )
    if config.bias != "none" and not trained:
        owner = "the model has" if config.bias == "all" else "the adapted layers have"
        run.emit("warning", message=f"bias: {config.bias} has no effect: {owner} no biases")


def _warn_of_scale(config: LoraConfig, run: RunContext) -> None:
    scale = config.scale_numerator / config.r
    if scale > 4 and not config.use_rslora:
        run.emit(
            "warning",
            message=f"alpha / r is {scale:g}: above 4 training tends to diverge; lower alpha or the learning rate",
        )
