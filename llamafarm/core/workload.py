"""What a run will compute on, from the model's config.json and a sample of its rows; imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from llamafarm.api.config import BaseModelConfig, FineTunerConfig
from llamafarm.api.estimates import Workload
from llamafarm.api.values import Example
from llamafarm.core.plan import Planned
from llamafarm.data.load import Loaded as Read
from llamafarm.data.load import load, open_rows
from llamafarm.data.problems import ProblemLog
from llamafarm.errors import LlamaFarmError, ModelError, StrategyError
from llamafarm.models.locate import locate

SAMPLE = 500
_WIDTHS = {"float32": 32, "bfloat16": 16, "float16": 16}
_FEW = 2_000
_ASSUMED = 1_000
_CHARACTERS = 4.0
"""Characters of a token, where there is no tokenizer to ask."""


@dataclass(slots=True)
class Sampled:
    """A workload, and what was assumed about it."""

    workload: Workload
    notes: list[str] = field(default_factory=list)


def workload_of(config: FineTunerConfig, planned: Planned) -> Sampled:
    """The workload of a run, from at most `SAMPLE` of its rows.

    Raises:
        ModelError: If the base model has no config.json that can be read.
        StrategyError: If no base model is named.
        NetworkError: If a hub model is not in the cache, and the hub cannot be reached.
    """
    described, folder = model_config(config.base_model)
    notes: list[str] = []
    examples, rows = _rows(config, notes)
    lengths, learned = _lengths(examples, folder, config, notes)
    if config.dataset.eval_path is not None:
        left, held_out = rows, 1
    else:
        held_out = max(1, round(rows * _share(planned))) if planned.splitter is not None and rows > 1 else 0
        left = rows - held_out
    stored = described.get("dtype") or described.get("torch_dtype") or "bfloat16"
    bits = _WIDTHS.get(str(stored), 16) if config.base_model.from_scratch is None else 0
    return Sampled(Workload(described, lengths, max(1, left), held_out, learned, bits), notes)


def _share(planned: Planned) -> float:
    """Of the rows that a splitter holds out, by the names that shares have in ours; else a tenth."""
    config = planned.splitter.config if planned.splitter else None
    fraction, percentage = getattr(config, "eval_fraction", None), getattr(config, "eval_percentage", None)
    return float(fraction or (percentage or 10) / 100)


def model_config(base: BaseModelConfig) -> tuple[Mapping[str, Any], Path | None]:
    """The base's `config.json`, and the folder where it is, unless it starts from nothing."""
    if base.from_scratch is not None:
        return {**base.from_scratch.architecture, "vocab_size": base.from_scratch.vocab_size}, None
    if base.huggingface_id is None:
        hint = "add --model NAME, or base_model.huggingface_id"
        raise StrategyError.of("LF-STRATEGY-031", "no base model is given", hint=hint)
    located = locate(base.huggingface_id)
    folder = located.folder
    if folder is None:
        from llamafarm.models.hub import fetch_config

        folder = fetch_config(base.huggingface_id, base).parent
    elif located.is_adapter and not (folder / "config.json").is_file():
        adapter = _read(folder / "adapter_config.json")
        return model_config(base.model_copy(update={"huggingface_id": adapter.get("base_model_name_or_path")}))
    return _read(folder / "config.json"), folder


def _read(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict):
            return values
        reason = "it holds no object"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise ModelError.of("LF-MODEL-162", f"the model's sizes cannot be read: {reason}", where=str(path))


def _rows(config: FineTunerConfig, notes: list[str]) -> tuple[Sequence[Example], int]:
    """The first rows as examples, and how many rows there are."""
    dataset, log = config.dataset, ProblemLog()
    sources = dataset.sources or (dataset,)
    examples: list[Example] = []
    count = 0
    for source in sources:
        into = Read()
        try:
            opened = open_rows(source, log, lambda _: None, seed=dataset.sample_seed, limit=dataset.max_samples)
            rows = iter(opened.rows)
            part = islice(rows, SAMPLE // len(sources) or 1)
            for _ in load(opened.name, part, source, into, log=log, notice=lambda _: None):
                pass
            count += len(into.examples) + _rest(rows, source.path)
        except (LlamaFarmError, OSError) as error:
            reason = error.problems[0].message if isinstance(error, LlamaFarmError) else str(error)
            notes.append(f"its rows cannot be looked at ({reason})")
        examples += into.examples
    return examples, count if examples else _ASSUMED


def _rest(rows: Iterator[Any], path: str | None) -> int:
    """How many rows follow: counted by lines where a large file has one in each."""
    few = sum(1 for _ in islice(rows, _FEW))
    if few < _FEW:
        return few
    file = Path(path or "")
    if file.suffix in (".jsonl", ".ndjson") and file.is_file():
        with file.open("rb") as lines:
            blocks = iter(lambda: lines.read(1 << 20), b"")
            return max(few, sum(block.count(b"\n") for block in blocks) - SAMPLE)
    return few + sum(1 for _ in rows)


def _lengths(
    examples: Sequence[Example], folder: Path | None, config: FineTunerConfig, notes: list[str]
) -> tuple[tuple[int, ...], float]:
    """Tokens of each example, and the share of them that is learned."""
    longest = config.training.max_seq_length
    if not examples:
        notes.append(f"no rows are known: {_ASSUMED:,} of {longest:,} tokens (max_seq_length) are assumed")
        return (longest,), 1.0
    texts = [_text(example) for example in examples]
    learned = sum(_learned(example) for example in examples) / max(1, sum(map(len, texts)))
    share = 1.0 if config.dataset.train_on_inputs or config.training.stage == "pt" else min(1.0, learned)
    file = folder / "tokenizer.json" if folder else None
    if file is not None and file.is_file():
        from tokenizers import Tokenizer

        encodings = Tokenizer.from_file(str(file)).encode_batch_fast(texts)
        return tuple(max(1, len(encoding.ids)) for encoding in encodings), share
    notes.append("there is no tokenizer.json: a token is taken for four characters")
    return tuple(max(1, round(len(text) / _CHARACTERS)) for text in texts), share


def _text(example: Example) -> str:
    if example.text is not None:
        return example.text
    turns = (*example.messages, *example.chosen)
    return "".join(f"<|{turn.role}|>{turn.content}\n" for turn in turns)


def _learned(example: Example) -> int:
    if example.text is not None:
        return len(example.text)
    turns = (*example.messages, *example.chosen)
    return sum(
        len(turn.content) + 1 for turn in turns if (turn.role == "assistant" if turn.train is None else turn.train)
    )
