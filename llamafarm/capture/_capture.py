"""Runs one row through a model and writes down every matrix on its way."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llamafarm import __version__
from llamafarm.capture._names import ATTENTION_FLOW, MLP_FLOW, named_matrices
from llamafarm.capture._record import LayerRecord, Recorder
from llamafarm.capture._stats import sink_mass, statistics
from llamafarm.errors import DataError, DiskError
from llamafarm.files import write_atomically
from llamafarm.models.first_token import begun, first_token

SUMMARY = "capture_summary.json"
_USUAL = 1024
"""Tokens of a row if nobody says how many."""


def input_row(model: Any, tokenizer: Any, *, length: int | None, seed: int, text: str | None = None) -> list[int]:
    """The row to run: a text, or tokens drawn by chance; it begins as the model's rows do in training.

    A model that was not trained with a first token of its own begins with its tokenizer's BOS, else EOS, so that base
    and tuned model see the same row.

    Returns:
        At most `length` token ids; without a length 1,024, or as many as the model's longest row has.

    Raises:
        DataError: If there is nothing to run, or it is longer than the model's longest row.
    """
    longest = getattr(model.config, "max_position_embeddings", None)
    if length is None:
        length = min(_USUAL, longest or _USUAL)
    if longest is not None and length > longest:
        message = f"--seq-len {length}: the model's longest row has {longest} tokens"
        raise DataError.of("LF-DATA-220", message, hint=f"give at most {longest}")
    marked = first_token(model)
    kinds = (marked, tokenizer.bos_token_id, tokenizer.eos_token_id)
    first = next((token for token in kinds if token is not None), None)
    if text is not None:
        ids = list(tokenizer(text)["input_ids"])
        if not text.strip():
            raise DataError.of("LF-DATA-221", "the text has no token to run", hint="give some words")
    else:
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        plain = [token for token in range(len(tokenizer)) if token not in special]
        ids = random.Random(seed).choices(plain, k=length)  # noqa: S311  # a sample, not a secret
    return begun(ids, first)[:length]


def row_digest(ids: Sequence[int]) -> str:
    """Tells rows apart."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


@dataclass(slots=True)
class _Writer:
    """Writes matrices and their figures as they come."""

    folder: Path
    tensors: bool
    written: dict[str, Any] = field(default_factory=dict)
    sinks: list[float] = field(default_factory=list)

    def layer(self, index: int, record: LayerRecord) -> None:
        assert record.attention is not None
        self.sinks.append(sink_mass(record.attention.weights))
        for name, tensor in named_matrices(record):
            self.write(f"layer_{index:02d}_{name}", tensor)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        stored = tensor.detach().cpu().contiguous().clone()
        figures = statistics(stored)
        if self.tensors:
            torch.save(stored, self.folder / f"{name}.pt")
        write_atomically(self.folder / f"{name}_stats.json", json.dumps(figures, indent=2) + "\n")
        self.written[name] = {"shape": figures["shape"], "dtype": figures["dtype"]}


def capture(
    model: Any, tokenizer: Any, ids: Sequence[int], folder: Path, *, tensors: bool = True, about: dict[str, Any]
) -> dict[str, Any]:
    """Run a row and write `layer_NN_NAME.pt`, `layer_NN_NAME_stats.json`, `model_…` and `capture_summary.json`.

    Args:
        model: In evaluation mode, as `load_trained` returns it; adapters are merged into it in memory.
        tokenizer: The model's.
        ids: The row.
        folder: An existing folder.
        tensors: Write the matrices too, not their figures alone.
        about: What the summary says besides.

    Returns:
        The summary.

    Raises:
        ModelError: If the architecture's attention cannot be seen.
        DiskError: If the folder cannot be written.
    """
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    writer = _Writer(folder, tensors)
    row = torch.tensor([list(ids)], device=model.device)
    try:
        with torch.inference_mode(), Recorder(model, writer.layer).watching():
            logits = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits
        writer.write("model_input", row)
        writer.write("model_output_logits", logits)
        summary = _summary(model, tokenizer, ids, writer) | about
        write_atomically(folder / SUMMARY, json.dumps(summary, indent=2, default=str) + "\n")
    except OSError as error:
        raise DiskError.of("LF-DISK-001", f"cannot write {folder}: {error.strerror or error}") from error
    return summary


def _summary(model: Any, tokenizer: Any, ids: Sequence[int], writer: _Writer) -> dict[str, Any]:
    names = sorted({name.split("_", 2)[2] for name in writer.written if name.startswith("layer_")})

    def flow(steps: Sequence[str]) -> list[str]:
        """The captured matrices of each step, in order; `_rmsnorm` and `_layernorm` are both a norm."""
        stems = [step.removesuffix("_norm") if step.endswith("_norm") else step for step in steps]
        found = [name for stem in stems for name in names if name == stem or name.startswith(f"{stem}_")]
        return list(dict.fromkeys(found))

    return {
        "llamafarm": __version__,
        "model_config": json.loads(model.config.to_json_string(use_diff=False)),
        "layers": len(writer.sinks),
        "sequence_length": len(ids),
        "first_token": {"id": ids[0], "text": str(tokenizer.convert_ids_to_tokens(ids[0]))},
        "input_sha256": row_digest(ids),
        "attention_sink_mass": writer.sinks,
        "captured_matrices": writer.written,
        "matrix_flow": {"attention_flow": flow(ATTENTION_FLOW), "mlp_flow": flow(MLP_FLOW)},
    }
