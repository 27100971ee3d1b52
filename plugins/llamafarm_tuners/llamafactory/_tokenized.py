"""Our own tokens and labels for LLaMA-Factory: what `llamafarm inspect` shows is what it learns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from llamafarm.api import PreparedData, RunContext
from llamafarm.data.tokens import TokenizedRow
from llamafarm.errors import DiskError
from llamafarm.models._load import load_tokenizer
from llamafarm_tuners.llamafactory.config import LlamaFactoryConfig
from llamafarm_tuners.llamafactory.translate import stage_of
from llamafarm_tuners.pytorch.sides import tokenized_sides


def write_tokens(config: LlamaFactoryConfig, data: PreparedData, run: RunContext, folder: Path) -> bool:
    """Tokenize both sides as the fine-tuner `pytorch` does, and write them; True if rows are held out.

    Raises:
        LlamaFarmError: If rows, template or lengths do not fit.
        DiskError: If they cannot be written.
    """
    training = config.training.model_copy(update={"stage": stage_of(config)})
    sides = tokenized_sides(
        config.model_copy(update={"training": training}), data, load_tokenizer(config.base_model), run
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in (("train", sides.train.rows), ("validation", sides.eval.rows)):
            if rows:
                _write(folder / f"{name}.jsonl", rows)
    except OSError as error:
        raise DiskError.of("LF-DISK-010", f"cannot write rows: {error.strerror}", where=str(folder)) from None
    return bool(sides.eval.rows)


def _write(path: Path, rows: Sequence[TokenizedRow]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            ids = list(row.input_ids)
            line = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(row.labels)}
            file.write(f"{json.dumps(line)}\n")
