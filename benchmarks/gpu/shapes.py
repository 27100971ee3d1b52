"""What is trained: shapes of models, rows, and the operations that they need."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Shape(NamedTuple):
    """Shape of a Llama."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    keys: int
    vocabulary: int
    tied: bool
    median: int


SHAPES = {
    "tiny": Shape(64, 128, 2, 4, 2, 500, tied=True, median=20),
    "1b": Shape(2048, 8192, 16, 32, 8, 128_256, tied=True, median=400),
    "8b": Shape(4096, 14_336, 32, 32, 8, 128_256, tied=False, median=400),
}
METHODS = ("lora", "qlora", "dora", "full")
RANK, LEARNING_RATE = 16, 1e-4


@dataclass(frozen=True)
class Task:
    """One comparison.

    Attributes:
        model: A name of `SHAPES`.
        method: One of `METHODS`.
        device: `cuda` or `cpu`.
        steps: Optimizer steps.
        batch: Rows of a step.
        folder: Has `model/` and `rows.jsonl`.
        rows: Token ids.
    """

    model: str
    method: str
    device: str
    steps: int
    batch: int
    folder: str
    rows: list[list[int]]

    def as_json(self) -> dict[str, Any]:
        """Everything but the rows, which are in the folder."""
        return {name: value for name, value in asdict(self).items() if name != "rows"}


def write_rows(folder: Path, model: str, count: int) -> list[list[int]]:
    """Write rows of random words, lengths log-normal; return their token ids: a word is a token, and one ends a row."""
    shape, generator = SHAPES[model], random.Random(0)
    rows = []
    for _ in range(count):
        length = min(max(round(shape.median * generator.lognormvariate(0, 0.8)), 8), 2000)
        rows.append([generator.randrange(4, shape.vocabulary) for _ in range(length)])
    lines = (json.dumps({"text": " ".join(f"w{token}" for token in row)}) for row in rows)
    (folder / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return rows


def needed_flops(rows: list[list[int]], task: Task) -> float:
    """Operations that training on the rows once cannot do without: every token is learned, nothing is padded.

    Per token 2 for each weight forward, 2 for the gradient of its input and, where it is trained, 2 for its own; 6 for
    each weight of an adapter; 6 h n² for causal attention over n tokens in a layer.
    """
    shape = SHAPES[task.model]
    h, i = shape.hidden, shape.intermediate
    keys = h * shape.keys // shape.heads
    weights = shape.layers * (2 * h * h + 2 * h * keys + 3 * h * i)
    adapters = shape.layers * RANK * (2 * 2 * h + 2 * (h + keys) + 3 * (h + i))
    full = task.method == "full"
    per_token = (6 if full else 4) * (weights + h * shape.vocabulary) + (0 if full else 6 * adapters)
    return sum(len(row) * per_token + 6 * shape.layers * h * len(row) ** 2 for row in rows)
