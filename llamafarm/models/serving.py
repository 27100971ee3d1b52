"""What each target of an export can take, told from a model's description alone: before training, and before merging.

vLLM's limits are those of its LoRA support: ranks up to 512, no DoRA, nothing besides low-rank matrices.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from llamafarm.api import AdapterSpec, BaseModelConfig
from llamafarm.errors import LlamaFarmError
from llamafarm.models.locate import locate

Target = Literal["merged", "adapter", "gguf", "ollama", "vllm"]
TARGETS: Final[tuple[Target, ...]] = ("merged", "adapter", "gguf", "ollama", "vllm")

VLLM_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `vllm serve --max-lora-rank` takes."""

GGUF_ARCHITECTURES: Final[Mapping[str, str]] = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
}
"""transformers' model_type → the name in GGUF, for what is written here and read back by transformers."""

OLLAMA_ARCHITECTURES: Final = frozenset({"llama", "mistral", "gemma", "gemma2", "phi3"})
"""What `ollama create` imports from a folder of safetensors; others go through GGUF."""

_MERGEABLE_BASES: Final = frozenset({"bitsandbytes", ""})


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a target cannot take a model, and what to do instead."""

    message: str
    hint: str
    id: str = "LF-MODEL-111"


@dataclass(frozen=True, slots=True)
class Described:
    """A model and its adapter, as far as targets care.

    Attributes:
        model_type: transformers' name of the architecture; empty when not known yet.
        tied: Whether the output head is the input embedding; None when not known yet.
        quantized: How the base's own files are quantized (`gptq`, `awq` …); empty if they are not.
        options: The adapter's options in PEFT's names; None for a whole model.
        methods: Names of the methods that made it.
    """

    model_type: str = ""
    tied: bool | None = None
    quantized: str = ""
    options: Mapping[str, Any] | None = None
    methods: Sequence[str] = field(default=())


def described(base: str | None, options: Mapping[str, Any] | None, methods: Sequence[str]) -> Described:
    """Describe a model by its base's config.json, if that is on this machine."""
    config = _config(base) if base else {}
    quantization = config.get("quantization_config") or {}
    return Described(
        str(config.get("model_type", "")),
        bool(config.get("tie_word_embeddings", False)) if config else None,
        str(quantization.get("quant_method", "")) if quantization else "",
        options,
        methods,
    )


def adapter_options(specs: Sequence[AdapterSpec]) -> Mapping[str, Any] | None:
    """The options of the adapter that methods will make; None if the base itself is trained."""
    if any(spec.changes_base for spec in specs):
        return None
    options = {name: value for spec in specs for name, value in spec.options.items()}
    kind = next((spec.kind for spec in specs if "target_modules" in spec.options), specs[0].kind if specs else "lora")
    return {"peft_type": kind.upper(), **options}


def obstacles(
    model: Described, target: Target, *, keep_adapter: bool = False, converter: bool = False
) -> list[Obstacle]:
    """Everything that stands between a model and a target.

    Args:
        model: What is to be exported.
        target: Where to.
        keep_adapter: For `vllm`: serve the adapter beside its base instead of a merged model.
        converter: llama.cpp's converter is at hand.
    """
    found: list[Obstacle] = []
    if target == "adapter" or (target == "vllm" and keep_adapter):
        found += _no_adapter(model)
    else:
        found += _not_mergeable(model)
    if target == "vllm" and keep_adapter and model.options is not None:
        found += [Obstacle(f"vLLM does not serve {what} in an adapter", _MERGE) for what in _beyond_lora(model)]
    writable = model.model_type in GGUF_ARCHITECTURES or not model.model_type
    imported = target == "ollama" and model.model_type in OLLAMA_ARCHITECTURES
    if target in ("gguf", "ollama") and not (writable or imported or converter):
        known = ", ".join(sorted(GGUF_ARCHITECTURES))
        hint = f"set --llama-cpp or LLAMA_CPP to a checkout (its convert_hf_to_gguf.py is used); without it: {known}"
        found.append(Obstacle(f"GGUF of a {model.model_type} model is not written here", hint, "LF-MODEL-113"))
    return found


def vllm_rank(rank: int) -> int:
    """The smallest `--max-lora-rank` that takes adapters of this rank."""
    return next(allowed for allowed in VLLM_RANKS if allowed >= rank)


def highest_rank(options: Mapping[str, Any]) -> int:
    """The largest rank of an adapter, patterns included."""
    return max([int(options.get("r") or 0), *map(int, (options.get("rank_pattern") or {}).values())])


_MERGE: Final = "leave keep_adapter out: the merged model serves everything"


def _no_adapter(model: Described) -> Iterator[Obstacle]:
    if model.options is None:
        hint = "use --to merged"
        yield Obstacle("there is no adapter: the whole model was trained", hint, "LF-MODEL-110")


def _not_mergeable(model: Described) -> Iterator[Obstacle]:
    if model.options is not None and model.quantized not in _MERGEABLE_BASES:
        yield Obstacle(
            f"the base is stored by {model.quantized}: an adapter cannot be merged into it without loss",
            "use --to adapter, or --to vllm --keep-adapter, or train on the base that is not quantized",
            "LF-MODEL-112",
        )
    if model.tied and "bos-scaling" in model.methods:
        yield Obstacle(
            "bos-scaling cannot be written into this base: its output head is its input embedding",
            "use --to adapter and generate with llamafarm, or a base with tie_word_embeddings: false",
            "LF-MODEL-116",
        )


def _beyond_lora(model: Described) -> Iterator[str]:
    options = model.options or {}
    kind = str(options.get("peft_type") or "LORA").upper().rpartition(".")[2]
    if kind not in ("LORA", "DORA"):
        yield f"{kind} matrices"
    if options.get("use_dora") or "dora" in model.methods:
        yield "DoRA (use_dora)"
    if options.get("modules_to_save"):
        yield f"modules_to_save ({', '.join(options['modules_to_save'])})"
    if options.get("bias") not in (None, "none"):
        yield f"biases (bias: {options['bias']})"
    if options.get("trainable_token_indices"):
        yield "trainable_token_indices"
    if highest_rank(options) > VLLM_RANKS[-1]:
        yield f"ranks above {VLLM_RANKS[-1]} (r: {highest_rank(options)})"
    if "bos-scaling" in model.methods:
        yield "bos-scaling"


def _config(base: str) -> dict[str, Any]:
    """The base's config.json, from a folder or the hub's cache; empty if it is not here."""
    try:
        located = locate(base)
    except LlamaFarmError:
        return {}  # reported where the model is loaded
    file: Any = located.folder / "config.json" if located.folder else _cached(located.given)
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _cached(model: str) -> Any:
    from pathlib import Path

    from huggingface_hub import try_to_load_from_cache

    config = BaseModelConfig(huggingface_id=model)
    found = try_to_load_from_cache(model, "config.json", cache_dir=config.cache_dir, revision=config.revision)
    return Path(found) if isinstance(found, str) else None
