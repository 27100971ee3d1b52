"""The same rows and the same strategy through both engines: token ids, what is learned, and losses."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamafarm.api import BaseModelConfig, Comparison, Example, Installed, Message, RowRef, TrainStrategy
from llamafarm.data.tokens import tokenize
from llamafarm.errors import PluginError
from llamafarm.models._load import load_tokenizer
from llamafarm.models.locate import locate
from llamafarm_tuners.llamafactory.environment import child_environment
from llamafarm_tuners.llamafactory.failures import last_lines
from llamafarm_tuners.llamafactory.rows import TRAIN, row, write_rows

MODEL = "builtin:tiny"
STEPS = 5
METHODS = ("full", "lora")
TOLERANCE = 1e-4
"""Largest difference of losses, relative: same weights, same rows in each step and same draw of the A matrices (by the
seed), so that rounding alone is left, carried along by AdamW. 2e-6 was measured; an engine that learned one token more
or less differs by 1e-2 at once."""


def compare(state: Installed, folder: Path, train: TrainStrategy) -> list[Comparison]:
    """Tokenize with both engines, then train with both."""
    examples = rows()
    found = _tokens(state, folder, examples)
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row(one, 'sft'))}\n" for one in examples), encoding="utf-8")
    for method in METHODS:
        ours, theirs = (train(_strategy(kind, method, path), folder / f"{method}-{kind}") for kind in _ENGINES)
        found.append(compared_losses(method, ours, theirs))
    return found


_ENGINES = ("pytorch", "llamafactory")


def rows() -> list[Example]:
    """Conversations: with and without a system turn, of one answer and of two, with characters of several scripts."""
    words = ("lamp", "Heizung", "światło", "persiana", "lumière 💡", "two\nlines", "a  b", "<|x|>")
    found = []
    for index, word in enumerate(words):
        turns = [Message("user", f"Turn on: {word}"), Message("assistant", f"{word} is on.")]
        if index % 2:
            turns.insert(0, Message("system", "You run a home."))
        if index % 3 == 0:
            turns += [Message("user", "And now off"), Message("assistant", f"Off: {word}")]
        found.append(Example(RowRef("parity", index + 1), tuple(turns)))
    return found


def compared_losses(method: str, ours: Sequence[float], theirs: Sequence[float]) -> Comparison:
    """Both courses beside each other."""
    pairs = list(zip(ours, theirs, strict=False))
    apart = max((abs(one - other) / max(abs(one), 1e-9) for one, other in pairs), default=float("inf"))
    note = f"largest difference {apart:.1e}, allowed {TOLERANCE:.0e}"
    same = len(ours) == len(theirs) == STEPS and apart <= TOLERANCE
    return Comparison(f"losses of {STEPS} steps, {method}", _course(ours), _course(theirs), same, note)


def _tokens(state: Installed, folder: Path, examples: Sequence[Example]) -> list[Comparison]:
    ours = tokenize(
        examples,
        load_tokenizer(BaseModelConfig(huggingface_id=MODEL)),
        stage="sft",
        max_seq_length=512,
        train_on_inputs=False,
    ).rows
    theirs = _their_rows(state, folder, examples)
    pairs = list(zip(ours, theirs, strict=True)) if len(ours) == len(theirs) else []
    same_ids = sum(one.input_ids == other["input_ids"][: len(one.input_ids)] for one, other in pairs)
    learned = [_beyond(one.labels, other["labels"]) for one, other in pairs]
    read = "by LLaMA-Factory's reading of the template"
    note = "a line end after the last answer, which we leave out" if any(learned) else ""
    more = f"learns {sum(filter(None, learned))} tokens after the ends of answers besides" if any(learned) else ""
    count = f"{len(ours)} rows"
    return [
        Comparison(f"token ids, {read}", count, f"{same_ids} the same", same_ids == len(examples), note),
        Comparison(
            f"labels, {read}", count, f"{sum(one is not None for one in learned)} alike", None not in learned, more
        ),
    ]


def _beyond(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """How many labels theirs has besides ours, each right after the end of an answer; None: they differ otherwise."""
    padded = [*ours, *[-100] * (len(theirs) - len(ours))]
    besides = 0
    for at, (one, other) in enumerate(zip(padded, theirs, strict=True)):
        if one != other:
            if one != -100 or padded[at - 1] == -100:
                return None
            besides += 1
    return besides


def _their_rows(state: Installed, folder: Path, examples: Sequence[Example]) -> list[dict[str, Any]]:
    write_rows(folder / "data", examples, (), "sft")
    model = locate(MODEL).folder
    given = {
        "model_name_or_path": str(model), "stage": "sft", "do_train": True, "finetuning_type": "lora", "dataset": TRAIN,
        "dataset_dir": str(folder / "data"), "cutoff_len": 512, "output_dir": str(folder / "none"), "report_to": "none",
        "use_cpu": True, "packing": False,
    }  # fmt: skip
    arguments, answer, log = folder / "tokens.json", folder / "tokenized.json", folder / "tokens.log"
    arguments.write_text(json.dumps(given), encoding="utf-8")
    script = Path(__file__).with_name("_tokens.py")
    environment = child_environment(state.python, os.environ, hub=False, one_gpu=False)
    with log.open("wb") as out:
        command = [str(state.python), str(script), str(arguments), str(answer)]
        subprocess.run(  # noqa: S603  # our script, in its environment
            command, stdout=out, stderr=subprocess.STDOUT, cwd=folder, env=environment, check=False
        )
    if not answer.is_file():
        raise PluginError.of("LF-PLUGIN-075", f"LLaMA-Factory failed: {last_lines(log, 1)}")
    found: list[dict[str, Any]] = json.loads(answer.read_text(encoding="utf-8"))
    return found


def _strategy(kind: str, method: str, path: Path) -> dict[str, Any]:
    """Every step sees all rows, so that their order is no difference; the learning rate does not change."""
    how: dict[str, Any] = (
        {"type": "lora", "r": 8, "alpha": 16, "dropout": 0.0} if method == "lora" else {"type": method}
    )
    training = {
        "batch_size": len(rows()), "max_steps": STEPS, "learning_rate": 1e-3, "lr_scheduler_type": "constant",
        "warmup_ratio": 0.0, "logging_steps": 1, "save_strategy": "no", "seed": 1,
    }  # fmt: skip
    return {"type": kind, "config": {"base_model": MODEL, "dataset": str(path), "method": how, "training": training}}


def _course(losses: Sequence[float]) -> str:
    return " ".join(f"{loss:.4f}" for loss in losses)
