"""Compares LoRA training step by step: plain, with each faster way, and transformers.Trainer, in one run.

Every way trains the same model (random weights) on the same rows in the same order, in a process of its own, in turn
(A B A B …), so that what else the machine does hits all alike. Printed are medians of the CPU seconds of the optimizer
steps, real tokens (padding not counted) a CPU second, the ratio to Trainer (median over the rounds), peak memory, CPU
seconds of the whole process, and the losses of the first and the last step, which show that all compute the same.

    python benchmarks/train.py                     small model, 64 rows, two rounds
    python benchmarks/train.py --model m --rows 32
    python benchmarks/train.py --ways trainer fused_bf16 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

SIZES = {  # hidden, intermediate, layers, heads
    "s": (384, 1024, 8, 6),
    "m": (768, 2048, 12, 12),
}
WAYS = {  # wanted ways and the base's precision; None: transformers.Trainer
    "trainer": None,
    "trainer_bf16": None,
    "plain": ((), "float32"),
    "documents": (("documents",), "float32"),
    "head": (("head",), "float32"),
    "products": (("products",), "float32"),
    "generic": (("documents", "head", "products"), "float32"),
    "fused": (("documents", "head", "products", "layers"), "float32"),
    "generic_bf16": (("documents", "head", "products"), "bfloat16"),
    "fused_bf16": (("documents", "head", "products", "layers"), "bfloat16"),
}
VOCABULARY, BATCH, ACCUMULATION = 32_000, 4, 4


def make_rows(count: int) -> list[Any]:
    """Rows of random tokens: lengths log-normal (median 120, 16 to 1,010), the last 55 percent or so are learned."""
    from llamafarm.data.fit import TokenizedRow

    generator, rows = random.Random(0), []
    for _ in range(count):
        length = min(max(round(generator.lognormvariate(4.79, 0.8)), 16), 1010)
        ids = [generator.randrange(4, VOCABULARY) for _ in range(length)]
        prompt = max(2, round(length * min(max(generator.betavariate(2.2, 2.6), 0.1), 0.9)))
        rows.append(TokenizedRow(ids, [-100] * prompt + ids[prompt:]))
    return rows


def make_model(size: str, dtype: str) -> Any:
    """A Llama with random weights and LoRA on all its linear layers."""
    import peft
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, layers, heads = SIZES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    options = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    torch.manual_seed(1)
    return peft.get_peft_model(model, peft.LoraConfig(**options))


def ours(way: str, size: str, rows: Sequence[Any], folder: Path) -> tuple[list[float], list[float]]:
    """CPU seconds and loss of each step of the `pytorch` fine-tuner's own loop."""
    from accelerate import Accelerator

    from llamafarm.api import TrainingConfig
    from llamafarm.testing.run_context import RecordingRun
    from llamafarm_tuners.pytorch._step import Stepper, Work
    from llamafarm_tuners.pytorch._store import Trained
    from llamafarm_tuners.pytorch.fast._install import Wanted, fast_paths
    from llamafarm_tuners.pytorch.schedule import plan_sizes

    class Tokenizer:
        pad_token_id = 0

    chosen, dtype = WAYS[way] or ((), "")
    model, accelerator, tokenizer = make_model(size, dtype), Accelerator(cpu=True), Tokenizer()
    wanted = Wanted(**{name: name in chosen for name in Wanted.__slots__})
    training = TrainingConfig(
        batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        num_epochs=1,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        weight_decay=0.0,
    )
    with fast_paths(model, rows, accelerator.device, RecordingRun(folder), wanted) as paths:
        trained: Any = Trained(model, tokenizer, "", "")  # type: ignore[arg-type]
        work = Work(trained, rows, [], training, accelerator, folder, paths=paths)
        stepper = Stepper(work, plan_sizes(len(rows), training, 1))
        seconds, losses, order = [], [], range(len(rows))
        for step, start in enumerate(range(0, len(rows), BATCH * ACCUMULATION)):
            mine = order[start : start + BATCH * ACCUMULATION]
            began = time.process_time()
            tally, _, _ = stepper.take(step, [mine[at : at + BATCH] for at in range(0, len(mine), BATCH)])
            seconds.append(time.process_time() - began)
            losses.append(tally.mean_loss)
    return seconds, losses


def trainers(way: str, size: str, rows: Sequence[Any], folder: Path) -> tuple[list[float], list[float]]:
    """CPU seconds and loss of each step of transformers.Trainer with its defaults."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    def collate(items: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        width = -(-max(len(item["input_ids"]) for item in items) // 8) * 8
        fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        return {
            name: torch.tensor([item[name] + [value] * (width - len(item[name])) for item in items])
            for name, value in fill.items()
        }

    class Steps(TrainerCallback):  # type: ignore[misc]  # transformers does not type it
        seconds: list[float] = []  # noqa: RUF012  # there is one
        losses: list[float] = []  # noqa: RUF012

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.process_time() - self.began)

        def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
            self.losses += [float(logs["loss"])] if "loss" in logs else []

    data = [{"input_ids": r.input_ids, "attention_mask": [1] * len(r.input_ids), "labels": r.labels} for r in rows]
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        num_train_epochs=1,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=way == "trainer_bf16",
        use_cpu=True,
        disable_tqdm=True,
        train_sampling_strategy="sequential",
    )
    steps = Steps()
    model: Any = make_model(size, "float32")
    Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[steps]).train()
    return steps.seconds, steps.losses


def work(options: argparse.Namespace) -> None:
    """Train in this process, and print what was measured as the last line."""
    from llamafarm.models._load import quiet
    from llamafarm_tuners.pytorch.meters import peak_resident_bytes

    quiet()
    rows = make_rows(options.rows)
    train: Callable[..., tuple[list[float], list[float]]] = trainers if WAYS[options.work] is None else ours
    with tempfile.TemporaryDirectory() as folder:
        seconds, losses = train(options.work, options.model, rows, Path(folder))
    tokens = sum(len(row.input_ids) for row in rows)
    found = {"train": sum(seconds), "tokens": tokens, "memory": peak_resident_bytes() / 2**20, "losses": losses}
    print(json.dumps(found | {"whole": time.process_time()}))


def measure(way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one way in a process of its own."""
    command = [sys.executable, __file__, "--work", way, "--model", options.model, "--rows", str(options.rows)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{way}: {found['train']:.2f} s, {found['memory']:,.0f} MiB", file=sys.stderr, flush=True)
    return found


def report(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    """Print the table."""
    tokens = next(iter(found.values()))[0]["tokens"]
    print(f"model {options.model}, {options.rows} rows, {tokens:,} tokens, {options.threads} thread(s), medians of")
    print(
        f"{options.rounds} rounds; {platform.processor() or platform.machine()}, Python {platform.python_version()}\n"
    )
    print("| way | train CPU s | tokens/CPU s | times Trainer | peak MiB | whole CPU s | first loss | last loss |")
    print("|---|---|---|---|---|---|---|---|")
    for way, runs in found.items():
        train, memory, whole = (median(run[name] for run in runs) for name in ("train", "memory", "whole"))
        ratios = [one["train"] / two["train"] for one, two in zip(found.get("trainer", []), runs, strict=False)]
        ratio = f"{median(ratios):.2f}" if ratios else ""
        losses = runs[-1]["losses"]
        cells = (f"{train:.2f}", f"{tokens / train:,.0f}", ratio, f"{memory:,.0f}", f"{whole:.1f}")
        print(f"| {way} | {' | '.join(cells)} | {losses[0]:.4f} | {losses[-1]:.4f} |", flush=True)


def main() -> None:
    """Measure all ways in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="s")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--work", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
    for _ in range(options.rounds):
        for way in options.ways:
            found[way].append(measure(way, options))
    report(found, options)


if __name__ == "__main__":
    main()
