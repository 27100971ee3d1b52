"""What a run costs beside its training: `python benchmarks/startup.py`.

Compares, in turn, whole processes: Python importing torch, our imports, and `llamafarm train` over a few rows, each
with and without lean imports.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

SCRIPTS = Path(__file__).parent / "training"
sys.path.insert(0, str(SCRIPTS))

from inputs import BATCH, write_inputs  # noqa: E402  # a script's neighbour

FIRST = """
from llamafarm.models.lean import lean_imports
with lean_imports():
    from llamafarm_tuners.pytorch import _fit
"""
OFF = {"LLAMAFARM_LEAN_IMPORTS": "off"}


def ways(folder: Path, counts: Sequence[int]) -> dict[str, tuple[list[str], Mapping[str, str]]]:
    """Name → command and environment; files are written for the commands that train."""
    python = [sys.executable, "-c"]
    found: dict[str, tuple[list[str], Mapping[str, str]]] = {
        "import torch": ([*python, "import torch"], {}),
        "imports of a run, as libraries have them": ([*python, FIRST], OFF),
        "imports of a run": ([*python, FIRST], {}),
    }
    for count in counts:
        command = _training(folder, count)
        found[f"llamafarm train, {count} rows, imports as libraries have them"] = (command, OFF)
        found[f"llamafarm train, {count} rows"] = (command, {})
    return found


def _training(folder: Path, count: int) -> list[str]:
    own = folder / str(count)
    own.mkdir()
    write_inputs(own, "s", count)
    chats = json.loads((own / "chats.json").read_text())
    lines = [json.dumps({"prompt": f"{chat['instruction']} ", "completion": chat["output"]}) for chat in chats]
    (own / "chats.jsonl").write_text("\n".join(lines) + "\n")
    config = {
        "base_model": str(own / "model"),
        "dataset": str(own / "chats.jsonl"),
        "method": {"type": "lora", "r": 16, "target_modules": "all"},
        "training": {"max_seq_length": 1024, "batch_size": BATCH, "gradient_accumulation_steps": 4, "num_epochs": 1},
    }
    strategy = own / "strategy.yaml"
    strategy.write_text(json.dumps({"fine_tuner": {"type": "pytorch", "config": config}}))
    out = ["--output-dir", str(own / "out"), "--overwrite", "--quiet"]
    return [sys.executable, "-m", "llamafarm", "train", "--strategy", str(strategy), *out]


def measure(command: Sequence[str], environment: Mapping[str, str], home: Path) -> float:
    """CPU seconds of a process from its start to its very end."""
    own = os.environ | {"LLAMAFARM_HOME": str(home), "HF_HUB_OFFLINE": "1"} | environment
    own["PYTHONDONTWRITEBYTECODE"] = ""  # as after an installation: nothing is compiled from source each time
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env=own, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 64], help="of the runs; none: imports alone")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compared = ways(folder, options.rows)
        for command, environment in compared.values():  # files into the cache, and what is measured once for a machine
            measure(command, environment, folder / "home")
        seconds: dict[str, list[float]] = {way: [] for way in compared}
        for _ in range(options.rounds):
            for way, (command, environment) in compared.items():
                seconds[way].append(measure(command, environment, folder / "home"))
    print("| process | CPU s | least | most |\n| --- | --- | --- | --- |")
    for way, taken in seconds.items():
        print(f"| {way} | {median(taken):.2f} | {min(taken):.2f} | {max(taken):.2f} |")


if __name__ == "__main__":
    main()
