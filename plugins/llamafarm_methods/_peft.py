"""Put LoRA adapters into a model through PEFT, leaving nothing to PEFT's defaults."""

from __future__ import annotations

from collections.abc import Sequence

import peft
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llamafarm.api import RunContext
from llamafarm.errors import ModelError, nearest
from llamafarm_methods._tokens import with_new_tokens
from llamafarm_methods.config import LoraConfig
from llamafarm_methods.targets import in_layers, matching, resolve_targets


def attach_lora(model: PreTrainedModel, config: LoraConfig, run: RunContext) -> nn.Module:
    """Return the model with adapters; they, and what `bias` and `modules_to_save` name, are all that is trained.

    Raises:
        ModelError: If a name matches nothing.
    """
    _warn_of_scale(config, run)
    if getattr(model, "is_quantized", False):
        _refuse_decomposition(config)
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    head = next((name for name, module in layers.items() if module is model.get_output_embeddings()), None)
    targets = resolve_targets(config.target_modules, list(layers), head)
    expected = _expected(targets, list(layers), config)
    settings = with_new_tokens(_peft_config(model, config, targets, layers[expected[0]]), model, expected, run)
    adapted = peft.get_peft_model(model, settings)
    placed = sorted(adapted.base_model.targeted_module_names)
    assert placed == expected, f"PEFT adapted {placed}, expected {expected}"
    return adapted


def _peft_config(
    model: PreTrainedModel, config: LoraConfig, targets: Sequence[str], example: nn.Module
) -> peft.LoraConfig:
    saved = _modules_to_save(model, config.modules_to_save)
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.r,
        lora_alpha=config.scale_numerator,
        lora_dropout=config.dropout,
        target_modules=list(targets),
        bias=config.bias,
        modules_to_save=saved or None,
        layers_to_transform=list(config.layers_to_transform) if config.layers_to_transform is not None else None,
        layers_pattern=config.layers_pattern,
        use_rslora=config.use_rslora,
        init_lora_weights=config.init_lora_weights,
        fan_in_fan_out=isinstance(example, Conv1D),
        ensure_weight_tying=bool(saved and getattr(model.config, "tie_word_embeddings", False)),
    )


def _expected(targets: Sequence[str], layers: Sequence[str], config: LoraConfig) -> list[str]:
    """Paths that shall be adapted; what `modules_to_save` trains whole takes no adapter."""
    paths = {path for name in targets for path in matching(name, layers)}
    whole = {path for name in config.modules_to_save for path in matching(name, layers)}
    chosen = paths - whole
    if config.layers_to_transform is not None:
        chosen = {path for path in chosen if in_layers(path, config.layers_to_transform, config.layers_pattern)}
    if not chosen:
        raise ModelError.of(
            "LF-MODEL-021",
            f"layers_to_transform {list(config.layers_to_transform or ())} leaves no layer to adapt",
            hint=f"the first of the layers is {min(paths)}; numbers start at 0",
        )
    return sorted(chosen)


def _modules_to_save(model: nn.Module, names: Sequence[str]) -> list[str]:
    paths = [path for path, _ in model.named_modules() if path]
    for name in names:
        if not matching(name, paths):
            leaves = {path.rpartition(".")[2] for path in paths}
            raise ModelError.of(
                "LF-MODEL-022",
                f"modules_to_save {name!r}: no module of this model has that name",
                hint=nearest(name, leaves),
            )
    return list(names)


def _refuse_decomposition(config: LoraConfig) -> None:
    if isinstance(config.init_lora_weights, str) and config.init_lora_weights.startswith(("pissa", "olora")):
        raise ModelError.of(
            "LF-MODEL-023",
            f"init_lora_weights {config.init_lora_weights!r} takes the base's weights apart and cannot do so when "
            "they are quantized",
            hint="use true, gaussian or orthogonal, or a base that is not quantized",
        )


def _warn_of_scale(config: LoraConfig, run: RunContext) -> None:
    scale = config.scale_numerator / config.r
    if scale > 4 and not config.use_rslora:
        run.emit(
            "warning",
            message=f"alpha / r is {scale:g}: above 4 training tends to diverge; lower alpha or the learning rate",
        )
