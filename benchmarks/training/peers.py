"""Trains with another program, in that program's environment: `peers.py WAY FOLDER METHOD`.

All get the same model, rows and hyper-parameters; what is not named here is as the program has it by default. Packed
ways take rows of 1,024 tokens one by one. torchtune, which is no program of this kind, has a script of its own.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inputs import ACCUMULATION, BATCH, LEARNING_RATE, LONGEST, PACKS, RANK, read_rows
from measured import Clock, say
from transformers import TrainerCallback


class Steps(TrainerCallback):  # type: ignore[misc]  # transformers does not type it
    """What the optimizer steps took, and their losses."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.losses: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.clock.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.stop()

    def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
        self.losses += [float(logs["loss"])] if "loss" in logs else []


def settings(out: str, *, packed: bool = False) -> dict[str, Any]:
    """What all of them understand."""
    return {
        "output_dir": out,
        "per_device_train_batch_size": 1 if packed else BATCH,
        "gradient_accumulation_steps": PACKS if packed else ACCUMULATION,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }


def trainer(way: str, folder: Path, out: str, steps: Steps) -> None:
    """transformers.Trainer."""
    import torch
    from adapters import adapted
    from transformers import Trainer, TrainingArguments

    def collate(items: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        width = -(-max(len(item["input_ids"]) for item in items) // 8) * 8
        fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        return {
            name: torch.tensor([item[name] + [value] * (width - len(item[name])) for item in items])
            for name, value in fill.items()
        }

    data = [
        {
            "input_ids": row.ids,
            "attention_mask": [1] * len(row.ids),
            "labels": [-100] * row.prompt + row.ids[row.prompt :],
        }
        for row in read_rows(folder)
    ]
    arguments = TrainingArguments(
        **settings(out),
        bf16=way.endswith("bf16"),
        train_sampling_strategy="group_by_length" if "grouped" in way else "sequential",
    )
    model = adapted(folder, sys.argv[3], torch.float32)
    Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[steps]).train()


def trl(way: str, folder: Path, out: str, steps: Steps) -> None:
    """TRL's SFTTrainer: with its defaults (bf16, gradients recomputed), in fp32, or packed."""
    from adapters import lora
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    data = [
        {"input_ids": row.ids, "completion_mask": [0] * row.prompt + [1] * (len(row.ids) - row.prompt)}
        for row in read_rows(folder)
    ]
    packed = "packed" in way
    chosen: dict[str, Any] = {"packing": packed}
    if way != "trl":
        chosen |= {"gradient_checkpointing": False, "bf16": way.endswith("bf16")}
    arguments = SFTConfig(**settings(out, packed=packed), max_length=LONGEST, completion_only_loss=True, **chosen)
    SFTTrainer(
        str(folder / "model"),
        args=arguments,
        train_dataset=Dataset.from_list(data),
        peft_config=lora(),
        callbacks=[steps],
    ).train()


def llamafactory(way: str, folder: Path, out: str, steps: Steps) -> None:
    """LLaMA-Factory: with its defaults, or packed without recomputing, in fp32 or bf16."""
    from llamafactory.train.tuner import run_exp

    packed = "packed" in way
    chosen: dict[str, Any] = {}
    if way != "llamafactory":
        chosen = {"disable_gradient_checkpointing": True, "neat_packing": packed, "bf16": way.endswith("bf16")}
    arguments = settings(out, packed=packed) | {
        "model_name_or_path": str(folder / "model"),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": RANK,
        "lora_alpha": 2 * RANK,
        "lora_target": "all",
        "dataset": "chats",
        "dataset_dir": str(folder),
        "template": "empty",
        "cutoff_len": LONGEST,
        "disable_shuffling": True,
    }
    run_exp(arguments | chosen, callbacks=[steps])


WAYS: dict[str, Callable[[str, Path, str, Steps], None]] = {
    "trainer": trainer,
    "trl": trl,
    "llamafactory": llamafactory,
}


def main() -> None:
    """Train once over the rows."""
    way, folder, steps = sys.argv[1], Path(sys.argv[2]), Steps()
    with tempfile.TemporaryDirectory() as out:
        WAYS[way.split("_")[0]](way, folder, out, steps)
    say(steps.clock, steps.losses)


if __name__ == "__main__":
    main()
