"""Measures training on a GPU: LlamaFarm in several ways beside TRL, without and with Liger.

Models have the shapes of Llama 3.2 1B and Llama 3.1 8B, and random weights, made on the spot: nothing is downloaded.
Every way trains on the same rows in a process of its own, in turn. Printed are real tokens a second (padding not
counted; medians of the steps after the first few, which compile and reserve memory), the share of the best matrix
product that this GPU does in bfloat16 (measured in the same run), peak memory, and the last loss.

    python benchmarks/gpu.py                                     1B, LoRA
    python benchmarks/gpu.py --model 8b --method lora qlora dora full
    python benchmarks/gpu.py --ways default liger trl trl_liger --trl peers/trl/bin/python
    python benchmarks/gpu.py --model tiny --device cpu --steps 3   tries the script where there is no GPU
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

SCRIPTS = Path(__file__).resolve().parent / "gpu"
sys.path.insert(0, str(SCRIPTS))

from shapes import METHODS, SHAPES, Task, needed_flops, write_rows  # noqa: E402  # a script's neighbour

OURS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "plain": {"fused": False, "base_model.attn_implementation": "eager"},
    "flash": {"base_model.attn_implementation": "flash_attention_2"},
    "liger": {"use_liger_kernel": True},
    "compile": {"torch_compile": True},
    "checkpointing": {"gradient_checkpointing": True},
    "offloading": {"activation_offloading": True},
}
TRL = ("trl", "trl_liger", "trl_packed", "trl_packed_liger")
WARM = 3
"""Steps that do not count."""


def measure(way: str, task: Task, trl: str) -> dict[str, Any]:
    """Train one way in a process of its own; nothing but a reason if it fails."""
    settings = {"way": way, "task": task.as_json(), "settings": dict(OURS.get(way, {}))}
    python, script = (trl, "trl_way.py") if way in TRL else (sys.executable, "our_way.py")
    found = _last_line([python, str(SCRIPTS / script), json.dumps(settings)])
    print(f"{task.method} {way}: {found.get('failed') or 'done'}", file=sys.stderr, flush=True)
    return found


def _last_line(command: list[str]) -> dict[str, Any]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(SCRIPTS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": " ".join(done.stderr.split())[-300:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row_of(way: str, runs: list[dict[str, Any]], task: Task, limit: float) -> str:
    """A line of the table: medians over the rounds."""
    good = [run for run in runs if "seconds" in run]
    if not good:
        return f"| `{way}` | {runs[-1].get('failed', '')} |"
    rate = median(sum(run["tokens"][WARM:]) / sum(run["seconds"][WARM:]) for run in good)
    per_token = needed_flops(task.rows, task) / sum(len(row) for row in task.rows)
    memory, loss = median(run["memory"] for run in good), good[-1]["losses"][-1]
    return f"| `{way}` | {rate:,.0f} | {rate * per_token / limit:.0%} | {memory:,.0f} | {loss:.4f} |"


def main() -> None:
    """Measure all ways of all methods in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="1b")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=["lora"])
    parser.add_argument("--ways", nargs="+", choices=[*OURS, *TRL], default=["default", "liger", "compile"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--trl", default=sys.executable, help="Python of an environment that has TRL (and Liger)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    if options.steps <= WARM:
        parser.error(f"--steps: more than {WARM}, which do not count")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = _last_line([sys.executable, str(SCRIPTS / "prepare.py"), options.model, options.device, str(folder)])
        if "failed" in made:
            sys.exit(f"no model: {made['failed']}")
        rows = write_rows(folder, options.model, options.steps * options.batch)
        print(f"{made['device']}, torch {made['torch']}; best product {made['limit'] / 1e12:.1f} TFLOP a second")
        for method in options.method:
            task = Task(options.model, method, options.device, options.steps, options.batch, str(folder), rows)
            found: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
            for _ in range(options.rounds):
                for way in options.ways:
                    found[way].append(measure(way, task, options.trl))
            print(
                f"\n{options.model}, {method}, {options.steps} steps of {options.batch} rows, {options.rounds} rounds\n"
            )
            print("| way | tokens/s | of the limit | peak MiB | last loss |\n|---|---|---|---|---|")
            for way, runs in found.items():
                print(row_of(way, runs, task, made["limit"]), flush=True)


if __name__ == "__main__":
    main()
