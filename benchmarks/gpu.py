"""Measures training on a GPU: LlamaFarm in several ways beside TRL, without and with Liger.

Models have the shapes of Llama 3.2 1B and Llama 3.1 8B, and random weights, made on the spot: nothing is downloaded.
Every way trains on the same rows in a process of its own, in turn. Printed are real tokens a second (padding not
counted; over the steps after the first few, which compile and reserve memory; medians of the rounds), the share of the
best matrix product that this GPU does in bfloat16 (measured in the same run), peak memory, and the
mean loss of all steps (their rows are the same, their order is not). A way
that fails, or runs out of memory, or takes longer than `--timeout`, is a row that says so; what was measured is printed
even if the run is stopped. Models and results are written below TMPDIR: 50 GB for all of an 8B.

    python benchmarks/gpu.py                                     1B, LoRA
    python benchmarks/gpu.py --model 8b --method lora qlora dora full
    python benchmarks/gpu.py --ways default liger trl trl_liger --trl peers/trl/bin/python
    python benchmarks/gpu.py --model tiny --device cpu --steps 3   tries the script where there is no GPU
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from typing import Any

SCRIPTS = Path(__file__).resolve().parent / "gpu"
sys.path.insert(0, str(SCRIPTS))

from shapes import METHODS, SHAPES, Task, needed_flops, write_rows  # noqa: E402  # a script's neighbour

OURS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "plain": {"fused": False, "base_model.attn_implementation": "eager"},
    "sdpa": {"base_model.attn_implementation": "sdpa"},
    "flash": {"base_model.attn_implementation": "flash_attention_2"},
    "liger": {"use_liger_kernel": True},
    "compile": {"torch_compile": True},
    "checkpointing": {"gradient_checkpointing": True},
    "offloading": {"activation_offloading": True},
    "optimizer_offloading": {"use_cpu_offload": True},
    "pure_bf16": {"pure_bf16": True, "gradient_checkpointing": True},
    "pure_bf16_offloading": {"pure_bf16": True, "gradient_checkpointing": True, "use_cpu_offload": True},
}
TRL = ("trl", "trl_liger", "trl_packed", "trl_packed_liger")
WARM = 3
"""Steps that do not count."""


@dataclass(frozen=True)
class Bench:
    """How ways are run.

    Attributes:
        trl: Python of an environment that has TRL.
        timeout: Seconds that one way may take.
    """

    trl: str
    timeout: float

    def measure(self, way: str, task: Task) -> dict[str, Any]:
        """Train one way in a process of its own; nothing but a reason if it fails."""
        settings = {"way": way, "task": task.as_json(), "settings": dict(OURS.get(way, {}))}
        python, script = (self.trl, "trl_way.py") if way in TRL else (sys.executable, "our_way.py")
        found = self.last_line([python, str(SCRIPTS / script), json.dumps(settings)])
        if "failed" not in found and not sum(found["seconds"][WARM:]):
            found = {"failed": f"only {len(found['seconds'])} steps"}
        told = found.get("failed") or f"{_rate(found):,.0f} tokens/s, {found['memory']:,.0f} MiB"
        print(f"{task.method} {way}: {told}", file=sys.stderr, flush=True)
        return found

    def last_line(self, command: list[str]) -> dict[str, Any]:
        """What a script prints last; or why it failed."""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(SCRIPTS)}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False, timeout=self.timeout
            )
            if done.returncode:
                return {"failed": " ".join(done.stderr.split())[-300:].replace("|", "/") or "it was killed"}
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            return {"failed": f"took longer than {self.timeout:.0f} s"}
        except (OSError, ValueError, IndexError) as error:  # no such Python, or nothing that it said
            return {"failed": str(error).replace("|", "/") or "no figures"}
        return found


def _rate(run: dict[str, Any]) -> float:
    """Tokens a second."""
    return float(sum(run["tokens"][WARM:]) / sum(run["seconds"][WARM:]))


def row_of(way: str, runs: list[dict[str, Any]], task: Task, limit: float) -> str:
    """A line of the table: medians over the rounds."""
    good = [run for run in runs if "failed" not in run]
    if not good:
        return f"| `{way}` | {runs[-1]['failed'] if runs else 'not measured'} | | | |"
    rate = median(map(_rate, good))
    per_token = needed_flops(task.rows, task) / sum(len(row) for row in task.rows)
    memory, loss = median(run["memory"] for run in good), fmean(good[-1]["losses"])
    return f"| `{way}` | {rate:,.0f} | {rate * per_token / limit:.0%} | {memory:,.0f} | {loss:.4f} |"


def _versions() -> str:
    """Of what is installed here."""
    names = ("torch", "transformers", "peft", "trl", "bitsandbytes", "liger-kernel", "triton", "flash-attn")
    known = [(name, version(name)) for name in names if find_spec(name.replace("-", "_"))]
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {number}" for name, number in known)])


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
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds that one way may take")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    if options.steps <= WARM:
        parser.error(f"--steps: more than {WARM}, which do not count")
    bench = Bench(options.trl, options.timeout)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = bench.last_line([sys.executable, str(SCRIPTS / "prepare.py"), options.model, options.device, name])
        if "failed" in made:
            sys.exit(f"no model: {made['failed']}")
        rows = write_rows(folder, options.model, options.steps * options.batch)
        print(f"{made['device']}; best product {made['limit'] / 1e12:.1f} TFLOP a second; {_versions()}")
        for method in options.method:
            task = Task(options.model, method, options.device, options.steps, options.batch, str(folder), rows)
            found: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
            try:
                for way in list(options.ways) * options.rounds:
                    found[way].append(bench.measure(way, task))
            except KeyboardInterrupt:
                print("stopped: this is what there is", file=sys.stderr)
                return
            finally:
                print(
                    f"\nModel `{task.model}`, {method}, {task.steps} steps of {task.batch} rows, "
                    f"{options.rounds} round(s):\n\n| way | tokens/s | of the limit | peak MiB | mean loss |\n"
                    "| --- | --- | --- | --- | --- |"
                )
                for way, runs in found.items():
                    print(row_of(way, runs, task, made["limit"]), flush=True)


if __name__ == "__main__":
    main()
