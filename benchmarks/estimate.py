"""Compares what `llamafarm estimate` says with what training then takes, each run in a process of its own.

Models have random weights; what training computes does not depend on their values. Of each run the table shows the
estimated and the measured peak of the memory, and how far the estimate is off. It runs on the machine's own device: on
a GPU the measured figure is the most that PyTorch allocated there, on a CPU the most main memory the process had.

    python benchmarks/estimate.py
    python benchmarks/estimate.py --models m l --methods lora qlora
    python benchmarks/estimate.py --set training.bf16=true
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

_LLAMA = {"model_type": "llama", "vocab_size": 32000, "tie_word_embeddings": True, "max_position_embeddings": 4096}
MODELS: Mapping[str, Mapping[str, Any]] = {
    "s": _LLAMA | {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6},
    "m": _LLAMA | {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 10, "num_attention_heads": 10},
    "l": _LLAMA | {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
    "xl": _LLAMA
    | {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "neox": {
        "model_type": "gpt_neox",
        "vocab_size": 32000,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
}
"""Of 26, 70, 110 and 150 million parameters; and one whose layers are not fused, of 58."""

METHODS = ("lora", "qlora", "full")
WORDS = "turn on the light in the kitchen dim it to half close the blinds when evening comes set twenty degrees".split()


@dataclass(frozen=True)
class Case:
    """One run: a model, a method, and rows of a micro-batch, each of `tokens` tokens."""

    model: str
    method: str
    rows: int
    tokens: int


@dataclass(frozen=True)
class Measured:
    """Bytes as estimated and as measured."""

    estimated: float
    measured: float

    @property
    def off(self) -> float:
        """How far the estimate is above what was measured, as a share of it."""
        return self.estimated / self.measured - 1


_MAKE = """
import json, sys
from transformers import AutoConfig, AutoModelForCausalLM
from llamafarm.testing._tiny import build_tokenizer
import torch
from pathlib import Path
folder = Path(sys.argv[1])
build_tokenizer(folder)
torch.manual_seed(0)
config = AutoConfig.for_model(**json.loads(sys.argv[2]))
AutoModelForCausalLM.from_config(config).save_pretrained(folder)
"""


def make_model(name: str, folder: Path) -> Path:
    """Save a model with random weights, in a process that ends with it."""
    path = folder / name
    path.mkdir()
    subprocess.run([sys.executable, "-c", _MAKE, str(path), json.dumps(MODELS[name])], check=True)  # noqa: S603
    return path


def make_rows(path: Path, count: int, words: int) -> Path:
    """Write chats, each with about as many words; half of them are learned."""
    generator = random.Random(0)  # noqa: S311  # rows, not secrets
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            prompt, answer = (" ".join(generator.choices(WORDS, k=words // 2)) for _ in range(2))
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path
