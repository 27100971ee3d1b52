"""Load tokenizers and models with everything said explicitly, and errors that a user can act on."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llamafarm.api import BaseModelConfig
from llamafarm.errors import ModelError, NetworkError, SecurityError
from llamafarm.models._quantize import keep_weights_as_packed, quantization_config
from llamafarm.models.hub import fetch_config
from llamafarm.models.locate import Located, locate

_PAD_NAMES = ("pad", "padding")


def load_tokenizer(config: BaseModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model, with a PAD token that is not the end token wherever it has one.

    Raises:
        ModelError: If there is none or it cannot be read.
    """
    quiet()
    located = _available(config)
    with _explained(located, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(located.source, **_hub_arguments(config))
    ensure_pad(tokenizer)
    return tokenizer


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
    located = _available(config)
    arguments = _hub_arguments(config) | {"dtype": dtype}
    if attention:
        arguments["attn_implementation"] = attention
    if quantization:
        arguments["quantization_config"] = quantization_config(quantization)
        arguments["device_map"] = {"": device}
    with _explained(located, "model"):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(located.source, **arguments)
    keep_weights_as_packed(model)
    return model


def load_for_generation(
    model: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32, config: BaseModelConfig | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load whatever answers prompts: a whole model, an adapter with its base, or a checkpoint of either.

    Args:
        model: A folder, a hub id or `builtin:NAME`.
        device: Where it shall run.
        dtype: Precision of its weights.
        config: Token, cache and so on for hub models.

    Raises:
        ModelError: If it is none of these, or an adapter does not fit its base.
    """
    located = locate(model)
    options = (config or BaseModelConfig()).model_copy(update={"huggingface_id": model})
    if not located.is_adapter:
        loaded = load_model(options, dtype=dtype)
        tokenizer = load_tokenizer(options)
    else:
        loaded, tokenizer = _load_adapter(located, options, dtype)
    require_room(loaded, tokenizer)
    return loaded.to(device).eval(), tokenizer


def ensure_pad(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer without PAD one of its own unused tokens; the end token only if nothing else is there.

    No token is added, so the model's embedding never has to grow. Nothing relies on the choice: labels and attention
    masks come from lengths.
    """
    if tokenizer.pad_token_id is not None:
        return
    special = list(tokenizer.added_tokens_encoder)
    named = [token for token in special if token.strip("<|[]>").casefold() in _PAD_NAMES or "_pad_" in token]
    reserved = [token for token in special if "reserved" in token.casefold()]
    spare = [tokenizer.unk_token] if tokenizer.unk_token not in (None, tokenizer.eos_token) else []
    tokenizer.pad_token = [*named, *reserved, *spare, tokenizer.eos_token][0]


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


def quiet() -> None:
    """Keep transformers' progress bars and chatter off the terminal; errors still raise."""
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _available(config: BaseModelConfig) -> Located:
    if not config.huggingface_id:
        raise ModelError.of("LF-MODEL-009", "no base model is named", hint="set base_model: NAME")
    located = locate(config.huggingface_id)
    if located.kind == "hub":
        fetch_config(located.given, config)
    return located


def _hub_arguments(config: BaseModelConfig) -> dict[str, Any]:
    token = config.token.get_secret_value() if config.token else None
    return {
        "revision": config.revision or "main",
        "cache_dir": config.cache_dir,
        "token": token or None,
        "trust_remote_code": config.trust_remote_code,
    }


def _load_adapter(
    located: Located, options: BaseModelConfig, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from peft import PeftModel

    assert located.folder
    described = json.loads((located.folder / "adapter_config.json").read_text(encoding="utf-8"))
    base = options.model_copy(update={"huggingface_id": described.get("base_model_name_or_path") or None})
    if not base.huggingface_id:
        raise ModelError.of("LF-MODEL-009", f"the adapter in {located.given} does not say what its base model is")
    loaded = load_model(base, dtype=dtype)
    has_tokenizer = (located.folder / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(options if has_tokenizer else base)
    require_room(loaded, tokenizer)
    with _explained(located, "adapter"):
        adapted = PeftModel.from_pretrained(loaded, str(located.folder))
    return adapted, tokenizer


@contextmanager
def _explained(located: Located, what: str) -> Iterator[None]:
    """Turn what transformers and PEFT raise for unusable files into errors that name the folder and the reason."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            raise SecurityError.of(
                "LF-SECURITY-001",
                f"{located.given} wants to run code of its own",
                hint="read that code, then set base_model.trust_remote_code: true if you trust it",
            ) from error
        if isinstance(error, OSError) and located.kind == "hub":
            raise NetworkError.of("LF-NET-001", f"cannot fetch the {what} of {located.given}: {reason}") from error
        if "model type" in reason or "Unrecognized configuration class" in reason:
            raise ModelError.of(
                "LF-MODEL-004",
                f"{located.given}: its architecture is no causal language model that transformers "
                f"{transformers.__version__} knows",
                hint=_architecture(located),
            ) from error
        raise ModelError.of("LF-MODEL-005", f"cannot load the {what} of {located.given}: {reason[:400]}") from error


def _architecture(located: Located) -> str:
    try:
        config = json.loads((Path(located.source) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return f"config.json says model_type {config.get('model_type')!r}"
