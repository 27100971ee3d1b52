"""Tiny models and tokenizers with random weights, built in a second, for tests of plugins and of LlamaFarm itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llamafarm.api.config import ScratchConfig
from llamafarm.models._load import quiet
from llamafarm.models._scratch import new_model, train_tokenizer

ARCHITECTURES = ("llama", "qwen2", "phi3", "mistral", "gemma", "gpt_neox")
"""What `build_model` builds: separate and fused projections, tied and untied heads, grouped and full attention."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Marks what the assistant says, as training on answers alone needs it."""

_SENTENCES = (
    "Turn on the light in the kitchen.",
    "The light in the kitchen is on.",
    "Close the blinds in the bedroom, please.",
    "The blinds in the bedroom are closed.",
    "What is the temperature in the living room?",
    "It is 21 degrees in the living room.",
    "Lock the front door and set the alarm.",
    "The front door is locked and the alarm is set.",
)
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
_GROUPED = {"num_key_value_heads": 2}
_SPECIFIC: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "phi3": _GROUPED,
    "mistral": _GROUPED | {"head_dim": 16},
    "gemma": _GROUPED | {"head_dim": 16},
    "gpt_neox": {},
}


def build_tokenizer(folder: Path, pad: str = "<|pad|>") -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer with a chat template on a few sentences, and save it to `folder`."""
    tokenizer = train_tokenizer(_SENTENCES, _scratch("llama", pad))
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_model(architecture: str, folder: Path, seed: int = 0) -> Path:
    """Save a model with random weights and its tokenizer to `folder`, as a hub model would be, and return it."""
    quiet()
    # transformers adds this token to every Qwen2 tokenizer that lacks it
    pad = "<|endoftext|>" if architecture == "qwen2" else "<|pad|>"
    tokenizer = build_tokenizer(folder, pad)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = new_model(_scratch(architecture, pad), tokenizer)
    model.save_pretrained(folder)
    return folder


def _scratch(architecture: str, pad: str) -> ScratchConfig:
    return ScratchConfig(
        architecture={"model_type": architecture, **_SIZES, **_SPECIFIC[architecture]},
        vocab_size=400,
        special_tokens={"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": pad},
        extra_tokens=("<|system|>", "<|user|>", "<|assistant|>"),
        chat_template=CHAT_TEMPLATE,
    )
