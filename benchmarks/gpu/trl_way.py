"""Trains with TRL's SFTTrainer: `trl_way.py SETTINGS`, as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from shapes import LEARNING_RATE, RANK
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Steps(TrainerCallback):  # type: ignore[misc]  # transformers does not type it
    """Seconds, real tokens and loss of each step."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {"seconds": [], "tokens": [], "losses": []}
        self.before = 0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        _wait()
        self.began = time.perf_counter()

    def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        _wait()
        self.found["seconds"].append(time.perf_counter() - self.began)
        seen = int(state.num_input_tokens_seen)
        self.found["tokens"].append(seen - self.before)
        self.before = seen

    def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
        self.found["losses"] += [float(logs["loss"])] if "loss" in logs else []


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Train, and print what it took."""
    from datasets import load_dataset

    given = json.loads(sys.argv[1])
    way, task = given["way"], given["task"]
    folder, steps, on_gpu = Path(task["folder"]), Steps(), task["device"] == "cuda"
    packed = "packed" in way
    quantized = None
    if task["method"] == "qlora":
        quantized = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    full = task["method"] == "full"
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model",
        dtype=torch.float32 if full else torch.bfloat16,
        quantization_config=quantized,
        attn_implementation="flash_attention_2" if packed and on_gpu else "sdpa",
    )
    options = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    adapter = None if full else LoraConfig(**options, use_dora=task["method"] == "dora")
    with tempfile.TemporaryDirectory() as out:
        arguments = SFTConfig(
            output_dir=out,
            per_device_train_batch_size=task["batch"],
            max_steps=task["steps"],
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not on_gpu,
            bf16=True,
            gradient_checkpointing=False,
            max_length=2048,
            packing=packed,
            use_liger_kernel="liger" in way,
            include_num_input_tokens_seen="non_padding",
        )
        rows = load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=out)
        SFTTrainer(model, args=arguments, train_dataset=rows, peft_config=adapter, callbacks=[steps]).train()
    memory = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0
    print("\n" + json.dumps({**steps.found, "memory": memory}))


if __name__ == "__main__":
    main()
