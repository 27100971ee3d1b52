"""Models that start from random weights, with a byte-level BPE tokenizer trained on the dataset."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from llamafarm.api.config import ScratchConfig
from llamafarm.errors import ModelError, nearest
from llamafarm.models._turns import end_of_turn
from llamafarm.models.special import ensure_pad
from llamafarm.models.templates import check_templates

_WORDS = r" ?\p{L}+|\p{N}{1,3}|[._/-]\p{L}+| ?[^\s\p{L}\p{N}]+|\s*\n|\s+(?!\S)|\s+"
"""Where merges stop: a word takes the space before it, a number never does (so a number has one spelling in tokens),
and the parts of a dotted or snake_case name stay whole."""


def train_tokenizer(texts: Iterable[str], config: ScratchConfig) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer that can write any text; special tokens are never split or merged."""
    named = config.special_tokens | _brought_by_its_class(config)
    special = list(dict.fromkeys([*named.values(), *config.extra_tokens]))
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
    plain_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, plain_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if bos := named.get("bos_token"):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=config.architecture.get("max_position_embeddings"),
        extra_special_tokens=list(config.extra_tokens),
        **named,
    )
    check_templates(config.chat_template, "from_scratch.chat_template")
    wrapped.chat_template = config.chat_template
    ensure_pad(wrapped)
    return wrapped


def _brought_by_its_class(config: ScratchConfig) -> dict[str, str]:
    """Special tokens that transformers gives every tokenizer of this kind of model when it is loaded.

    Qwen2's has an unknown token, for one. Left out, the saved tokenizer would come back larger than its model.
    """
    model_type = config.architecture.get("model_type")
    if model_type not in CONFIG_MAPPING:
        return {}
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), clean_up_tokenization_spaces=False, **config.special_tokens
    )
    with tempfile.TemporaryDirectory() as folder:
        bare.save_pretrained(folder)
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return {name: str(token) for name, token in loaded.special_tokens_map.items() if name not in config.special_tokens}


def new_model(config: ScratchConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Build a model with random weights (of torch's current seed) in float32 for `tokenizer`.

    Raises:
        ModelError: If the architecture is unknown, or does not take the options given.
    """
    options = dict(config.architecture)
    model_type = str(options.pop("model_type", ""))
    if model_type not in CONFIG_MAPPING:
        raise ModelError.of(
            "LF-MODEL-004",
            f"from_scratch.architecture.model_type is {model_type!r}, which transformers does not know",
            hint=nearest(model_type, CONFIG_MAPPING) or "e.g. 'llama'",
        )
    unknown = sorted(set(options) - set(CONFIG_MAPPING[model_type]().to_dict()))
    if unknown:
        raise ModelError.of("LF-MODEL-012", f"{model_type} has no option {', '.join(map(repr, unknown))}")
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    try:
        architecture = AutoConfig.for_model(model_type, **(options | tokens | {"vocab_size": len(tokenizer)}))
        model: PreTrainedModel = AutoModelForCausalLM.from_config(architecture, dtype=torch.float32)
    except (ValueError, TypeError, ZeroDivisionError, RuntimeError, AssertionError) as error:
        raise ModelError.of("LF-MODEL-012", f"cannot build a {model_type} model from these options: {error}") from error
    ends = {tokenizer.eos_token_id, end_of_turn(tokenizer)} - {None}
    if model.generation_config is not None and len(ends) > 1:  # a server that only has the model must stop there too
        model.generation_config.eos_token_id = sorted(ends)
    return model
