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
from collections.abc import Mapping, Sequence
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
WORDS = [
    "turn",
    "on",
    "the",
    "light",
    "in",
    "the",
    "kitchen",
    "dim",
    "it",
    "to",
    "half",
    "close",
    "the",
    "blinds",
    "when",
    "evening",
    "comes",
    "set",
    "twenty",
    "degrees",
]


@dataclass(frozen=True)
class Case:
    """One run: a model, a method, and the rows of a micro-batch, each of so many words."""

    model: str
    method: str
    rows: int
    words: int


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
    subprocess.run([sys.executable, "-c", _MAKE, str(path), json.dumps(MODELS[name])], check=True)
    return path


def make_rows(path: Path, count: int, words: int) -> Path:
    """Write chats, each with about as many words; half of them are learned."""
    generator = random.Random(0)  # rows, not secrets
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            prompt, answer = (" ".join(generator.choices(WORDS, k=words // 2)) for _ in range(2))
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


def measure(case: Case, folder: Path, options: argparse.Namespace) -> Measured:
    """Train two steps in a process of their own, and read what its manifest says."""
    model, output = folder / case.model, folder / "output"
    rows = make_rows(folder / "rows.jsonl", 2 * case.rows, case.words)
    command = [sys.executable, "-m", "llamafarm", "train", "--model", str(model), "--dataset", str(rows)]
    command += ["--method", case.method, "--max-steps", "2", "--batch-size", str(case.rows)]
    command += ["--output", str(output), "--overwrite", "--quiet", "--set", "training.max_seq_length=4096"]
    command += [word for text in options.set for word in ("--set", text)]
    environment = {**os.environ, "LLAMAFARM_CALIBRATION": "off"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{case}: {ended.stderr}")
    manifest = json.loads((output / "llamafarm" / "manifest.json").read_text(encoding="utf-8"))
    return Measured(manifest["estimate"]["memory_bytes"], manifest["metrics"]["peak_memory_bytes"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and fail if an estimate is further off than it may be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--rows", type=int, default=4, help="Rows of a micro-batch.")
    parser.add_argument("--words", type=int, default=300, help="Words of a row, some two and a half tokens each.")
    parser.add_argument("--set", action="append", default=[], help="A setting a.b=c, as with train; repeatable.")
    parser.add_argument("--most", type=float, default=0.15, help="Fail where an estimate is further off, as a share.")
    options = parser.parse_args(arguments)
    print("| model | method | estimated MiB | measured MiB | off |\n|---|---|---|---|---|")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            make_model(name, Path(folder))
        for name, method in product(options.models, options.methods):
            found = measure(Case(name, method, options.rows, options.words), Path(folder), options)
            sizes = f"{found.estimated / 2**20:,.0f} | {found.measured / 2**20:,.0f}"
            print(f"| `{name}` | {method} | {sizes} | {found.off:+.0%} |", flush=True)
            worst = max(worst, abs(found.off))
    return int(worst > options.most)


if __name__ == "__main__":
    sys.exit(main())
