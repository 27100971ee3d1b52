"""Load tokenizers and models with everything said explicitly, and errors that a user can act on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from llamafarm.api import BaseModelConfig
from llamafarm.errors import ModelError
from llamafarm.models._quantize import keep_weights_as_packed, quantization_config
from llamafarm.models._tokenizer import available, ensure_pad, explained, hub_arguments, load_tokenizer, quiet
from llamafarm.models.locate import Located, locate

__all__ = ["ensure_pad", "load_for_generation", "load_model", "load_tokenizer", "quiet", "require_room"]


def load_model(
    config: BaseModelConfig,
    *,
    dtype: torch.dtype,
    attention: str | None = None,
    quantization: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> PreTrainedModel:
    """Load a causal language model for training or generation.

    Args:
        config: Which model, and how the hub is asked for it.
        dtype: Precision of the weights (of those that are not quantized).
        attention: Attention kernel; None lets transformers choose what the architecture supports.
        quantization: Options of `AdapterSpec.quantization`; empty or None loads the weights as they are.
        device: Where quantized weights go; others stay on the CPU for the caller to move.

    Raises:
        ModelError: If the folder is damaged, the architecture is unknown, or the attention kernel does not fit.
        SecurityError: If the model wants to run code of its own and was not allowed to.
    """
    quiet()
    located = available(config)
    arguments = hub_arguments(config) | {"dtype": dtype}
    if attention:
        arguments["attn_implementation"] = attention
    if quantization:
        arguments["quantization_config"] = quantization_config(quantization)
        arguments["device_map"] = {"": device}
    with explained(located, "model"):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(located.source, **arguments)
    keep_weights_as_packed(model)
    return model


def load_for_generation(
    model: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    config: BaseModelConfig | None = None,
    rounded: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load whatever answers prompts: a whole model, an adapter with its base, or a checkpoint of either.

    Args:
        model: A folder, a hub id or `builtin:NAME`.
        device: Where it shall run.
        dtype: Precision of its weights.
        config: Token, cache and so on for hub models.
        rounded: Options of `AdapterSpec.quantization`: an adapter's base gets the values that these leave of it, in
            full precision, as the adapter knew them when it was trained.

    Raises:
        ModelError: If it is none of these, or an adapter does not fit its base.
    """
    located = locate(model)
    options = (config or BaseModelConfig()).model_copy(update={"huggingface_id": model})
    if not located.is_adapter:
        loaded = load_model(options, dtype=dtype)
        tokenizer = load_tokenizer(options)
    else:
        loaded, tokenizer = _load_adapter(located, options, dtype, rounded)
    require_room(loaded, tokenizer)
    return loaded.to(device).eval(), tokenizer


def require_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that every token of the tokenizer has a row in the model's embedding.

    Raises:
        ModelError: If the tokenizer is larger.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    if len(tokenizer) > rows:
        raise ModelError.of(
            "LF-MODEL-010",
            f"the tokenizer has {len(tokenizer)} tokens, but the model's embedding only {rows} rows",
            hint="give the base model whose tokenizer this is",
        )


def _load_adapter(
    located: Located, options: BaseModelConfig, dtype: torch.dtype, rounded: Mapping[str, Any] | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from peft import PeftModel

    assert located.folder
    described = json.loads((located.folder / "adapter_config.json").read_text(encoding="utf-8"))
    base = options.model_copy(update={"huggingface_id": described.get("base_model_name_or_path") or None})
    if not base.huggingface_id:
        raise ModelError.of("LF-MODEL-009", f"the adapter in {located.given} does not say what its base model is")
    loaded = load_model(base, dtype=dtype, quantization=rounded)
    if getattr(loaded, "is_quantized", False) and rounded is not None:
        loaded = loaded.dequantize(dtype)
    has_tokenizer = (located.folder / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(options if has_tokenizer else base)
    require_room(loaded, tokenizer)
    with explained(located, "adapter"):
        adapted = PeftModel.from_pretrained(loaded, str(located.folder))
    return adapted, tokenizer
