"""Trains with LlamaFarm, as `llamafarm train` does: `our_way.py SETTINGS`, as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from shapes import LEARNING_RATE, RANK


def strategy(task: dict[str, Any], settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """The strategy of a way."""
    adapter = {"type": task["method"], "r": RANK, "lora_alpha": 2 * RANK, "target_modules": "all"}
    training: dict[str, Any] = {
        "stage": "pt",
        "batch_size": task["batch"],
        "gradient_accumulation_steps": 1,
        "max_steps": task["steps"],
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "max_seq_length": 2048,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    base: dict[str, Any] = {"huggingface_id": str(Path(task["folder"]) / "model")}
    if task["method"] != "full":
        base["torch_dtype"] = "bfloat16"
    for name, value in settings.items():
        (base if name.startswith("base_model.") else training)[name.removeprefix("base_model.")] = value
    config = {
        "base_model": base,
        "dataset": {"path": str(Path(task["folder"]) / "rows.jsonl")},
        "method": adapter if task["method"] != "full" else {"type": "full"},
        "training": training,
        "output_dir": str(out),
    }
    return {
        "name": "benchmark",
        "hardware": {"type": task["device"]},
        "components": {"fine_tuner": {"type": "pytorch", "config": config}},
    }


def main() -> None:
    """Run the program, and read what it logged."""
    given = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        out, file = Path(folder) / "run", Path(folder) / "benchmark.yaml"
        file.write_text(json.dumps(strategy(given["task"], given["settings"], out), indent=1))  # JSON is YAML
        command = [sys.executable, "-m", "llamafarm", "train", "--strategy", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr.strip() or done.stdout.strip())
        steps = [json.loads(line) for line in (out / "trainer_log.jsonl").read_text().splitlines()]
        results = json.loads((out / "train_results.json").read_text())
    steps = [step for step in steps if "loss" in step]
    tokens = [later - sooner for sooner, later in pairwise([0, *(step["total_tokens"] for step in steps)])]
    found = {
        "tokens": tokens,
        "seconds": [count / step["throughput"] for count, step in zip(tokens, steps, strict=True)],
        "losses": [step["loss"] for step in steps],
        "memory": results["peak_memory_bytes"] / 2**20,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
