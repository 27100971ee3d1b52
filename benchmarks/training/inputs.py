"""What every way trains: a model with random weights, rows of random tokens, and the multiplications they need."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

VOCABULARY, BATCH, ACCUMULATION, LEARNING_RATE, RANK, LONGEST = 32_000, 4, 4, 1e-3, 16, 1024
PACKS = 3
"""Rows of `LONGEST` tokens to a step, of the programs that pack: about as many tokens as 16 rows have."""


@dataclass(frozen=True)
class Size:
    """Shape of a Llama."""

    hidden: int
    intermediate: int
    layers: int
    heads: int


SIZES = {"s": Size(384, 1024, 8, 6), "m": Size(768, 2048, 12, 12)}


@dataclass(frozen=True)
class Row:
    """A row: token ids, and how many of them are a prompt, which is not learned."""

    ids: list[int]
    prompt: int


def make_rows(count: int) -> list[Row]:
    """Rows of random tokens: lengths log-normal (median 120, 16 to 1,010), the last 55 percent or so are learned."""
    generator, rows = random.Random(0), []
    for _ in range(count):
        length = min(max(round(generator.lognormvariate(4.79, 0.8)), 16), 1010)
        ids = [generator.randrange(4, VOCABULARY) for _ in range(length)]
        rows.append(Row(ids, max(2, round(length * min(max(generator.betavariate(2.2, 2.6), 0.1), 0.9)))))
    return rows


def read_rows(folder: Path) -> list[Row]:
    """The rows that `write_inputs` wrote."""
    return [Row(**json.loads(line)) for line in (folder / "rows.jsonl").read_text().splitlines()]


def write_inputs(folder: Path, size: str, count: int) -> list[Row]:
    """Write `model/`, `rows.jsonl`, and the rows as text (a word for each token) for programs that take text only."""
    rows = make_rows(count)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row.__dict__) + "\n" for row in rows))
    chats = [
        {"instruction": _words(row.ids[: row.prompt]), "input": "", "output": _words(row.ids[row.prompt :])}
        for row in rows
    ]
    (folder / "chats.json").write_text(json.dumps(chats))
    (folder / "dataset_info.json").write_text(json.dumps({"chats": {"file_name": "chats.json"}}))
    _write_model(folder / "model", SIZES[size])
    return rows


def needed_flops(rows: list[Row], size: Size) -> float:
    """Operations that training on the rows once cannot do without: no padding, no head where nothing is learned.

    Per token 2 for each weight of the layers forward and 2 backward (the gradient of the input; none below the first
    layer's q, k, v), 6 for each weight of the adapters; 6 h n² for causal attention over n tokens in a layer, 2 of
    them forward; 4 h V for each learned token.
    """
    h, i = size.hidden, size.intermediate
    tokens = sum(len(row.ids) for row in rows)
    learned = sum(len(row.ids) - row.prompt for row in rows)
    weights = size.layers * (4 * h * h + 3 * h * i)
    adapters = size.layers * RANK * (4 * 2 * h + 3 * (h + i))
    attention = 6 * size.layers * h * sum(len(row.ids) ** 2 for row in rows)
    return tokens * (4 * weights - 2 * 3 * h * h + 6 * adapters) + attention + 4 * h * VOCABULARY * learned


def _words(ids: list[int]) -> str:
    return " ".join(f"w{number}" for number in ids)


def _write_model(folder: Path, size: Size) -> None:
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = [*special, *(f"w{number}" for number in range(len(special), VOCABULARY))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
