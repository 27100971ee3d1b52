"""Makes a model with random weights, and measures the best matrix product: `prepare.py MODEL DEVICE FOLDER`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from shapes import SHAPES
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def write_model(folder: Path, name: str, device: str) -> None:
    """Weights in bfloat16, and a tokenizer to which each word is a token."""
    shape = SHAPES[name]
    words = [*SPECIAL, *(f"w{number}" for number in range(len(SPECIAL), shape.vocabulary))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.keys,
        max_position_embeddings=8192,
        tie_word_embeddings=shape.tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)


def best_product(device: str) -> float:
    """Operations a second of the best of a few square products in bfloat16."""
    best, sizes = 0.0, (4096, 8192) if device == "cuda" else (512,)
    for size in sizes:
        one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
        for repeats in (3, 20):
            _wait(device)
            began = time.perf_counter()
            for _ in range(repeats):
                one @ other
            _wait(device)
            best = max(best, 2 * size**3 * repeats / (time.perf_counter() - began))
    return best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    model_name, where, target = sys.argv[1:]
    write_model(Path(target) / "model", model_name, where)
    name = torch.cuda.get_device_name() if where == "cuda" else "CPU"
    print(json.dumps({"limit": best_product(where), "device": name, "torch": torch.__version__}))
