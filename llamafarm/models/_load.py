"""Load tokenizers and models with everything said explicitly, and errors that a user can act on."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from llamafarm.api import BaseModelConfig
from llamafarm.errors import ModelError
from llamafarm.models._adapter import (
    adapter_config,
    blocks_without_compiling,
    check_patterns,
    check_tensors,
    repeatable,
    without_idle_warnings,
)
from llamafarm.models._files import remember_files
from llamafarm.models._quantize import gptq_with_gradients, keep_weights_as_packed, quantization_config
from llamafarm.models._tokenizer import (
    available,
    explained,
    hub_arguments,
    load_tokenizer,
    load_vocabulary,
    quiet,
)
from llamafarm.models._vocabulary import add_rows, name_special_tokens, require_room, rows_of
from llamafarm.models.adapter_config import base_named_by, require_base_here, require_weights
from llamafarm.models.identity import require_identity
from llamafarm.models.lean import lean_imports
from llamafarm.models.locate import Located, locate, not_whole
from llamafarm.models.prequantized import require_library, stored_as
from llamafarm.models.safety import require_safetensors
from llamafarm.models.vocabulary import Additions, read_additions

__all__ = ["load_for_generation", "load_model", "load_tokenizer", "load_vocabulary", "quiet", "require_room"]


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
        ModelError: If it is an adapter, the folder is damaged, the architecture is unknown, or the attention kernel
            does not fit.
        PluginError: If the weights are stored in a format whose library is not installed.
        SecurityError: If the model wants to run code of its own and was not allowed to.
    """
    quiet()
    located = available(config)
    if located.is_adapter:
        raise ModelError([not_whole(located.given)])
    require_library(located, config)
    if located.folder is not None:
        require_safetensors(located.folder, located.given)
    arguments = hub_arguments(config) | {"dtype": dtype, "use_safetensors": True}
    if attention:
        arguments["attn_implementation"] = attention
    if quantization:
        arguments["quantization_config"] = quantization_config(quantization)
        arguments["device_map"] = {"": device}
    stored = stored_as(located, config)
    if not quantization and device == "cpu" and stored == "gptq":
        arguments["quantization_config"] = gptq_with_gradients()
    # libraries of such formats print banners on the way; what a command gives out stays its own
    aside = redirect_stdout(sys.stderr) if stored else nullcontext()
    with explained(located, "model"), aside, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You passed `quantization_config`", category=UserWarning)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(located.source, **arguments)
    if getattr(model, "_hf_peft_config_loaded", False):  # one of the hub
        raise ModelError([not_whole(located.given)])
    keep_weights_as_packed(model)
    remember_files(model, located, config)
    return model


def load_for_generation(
    model: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    config: BaseModelConfig | None = None,
    quantization: Mapping[str, Any] | None = None,
    unpacked: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load whatever answers prompts: a whole model, an adapter with its base, or a checkpoint of either.

    Args:
        model: A folder, a hub id or `builtin:NAME`.
        device: Where it shall run.
        dtype: Precision of its weights.
        config: Token, cache and so on for hub models; and whether it, or an adapter's base, may run code of its own.
        quantization: Options of `AdapterSpec.quantization` that an adapter was trained with: its base is loaded so.
        unpacked: Take that base back to full precision: the values that quantization left, as plain weights.

    Raises:
        ModelError: If it is none of these, or an adapter does not fit its base.
    """
    located = locate(model)
    saved = {"huggingface_id": model, "add_pad_token": False}  # what is there answers as it is
    options = (config or BaseModelConfig()).model_copy(update=saved)
    if not located.is_adapter:
        loaded = load_model(options, dtype=dtype, device=device)
        tokenizer = load_tokenizer(options)
    else:
        loaded, tokenizer = _load_adapter(located, options, dtype, device, quantization or {}, unpacked=unpacked)
    require_room(loaded, tokenizer)
    if not (quantization and not unpacked and located.is_adapter):  # packed weights are where they belong
        loaded = loaded.to(device)
    return loaded.eval(), tokenizer


def _load_adapter(
    located: Located,
    options: BaseModelConfig,
    dtype: torch.dtype,
    device: str,
    quantization: Mapping[str, Any],
    *,
    unpacked: bool,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with lean_imports():
        from peft import PeftModel

    assert located.folder
    base = options.model_copy(update={"huggingface_id": base_named_by(located.folder)})
    if not base.huggingface_id:
        raise ModelError.of("LF-MODEL-009", f"the adapter in {located.given} does not say what its base model is")
    require_base_here(base.huggingface_id, base, located.given)
    require_weights(located.folder, located.given)
    require_identity(located.folder, base.huggingface_id, base.revision)
    loaded = load_model(base, dtype=dtype, quantization=quantization, device=device)
    if quantization and unpacked:
        loaded = loaded.dequantize(dtype)
    has_tokenizer = (located.folder / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(options if has_tokenizer else base)
    if additions := read_additions(located.folder) or _foreign_additions(located.folder, loaded, tokenizer):
        add_rows(loaded, additions)
    name_special_tokens(loaded, tokenizer)
    described = adapter_config(located.folder)
    check_patterns(loaded, described, located.given)
    blocks_without_compiling()
    with explained(located, "adapter"), repeatable(), without_idle_warnings():
        adapted = PeftModel.from_pretrained(loaded, str(located.folder), config=described)
    check_tensors(adapted, located.folder)
    return adapted, tokenizer


def _foreign_additions(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Additions | None:
    """What an adapter that another tool made needs: rows for its tokenizer, or as many as it brings itself."""
    needed = max(len(tokenizer), _saved_rows(folder, model))
    return Additions(needed) if needed > rows_of(model) else None


def _saved_rows(folder: Path, model: PreTrainedModel) -> int:
    """Rows of the embedding that an adapter holds whole; 0 if it holds none."""
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        return 0
    embedding = model.get_input_embeddings()
    name = next(path for path, module in model.named_modules() if module is embedding)
    with explained(Located(str(folder), "folder", folder), "adapter"), safe_open(weights, framework="pt") as file:
        wanted = (key for key in file.keys() if key.endswith(f"{name}.weight"))  # noqa: SIM118  # no mapping
        return max((int(file.get_slice(key).get_shape()[0]) for key in wanted), default=0)
