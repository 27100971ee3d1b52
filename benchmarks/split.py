"""Compares `llamafarm datasplit` with the plain script that reads, parses, shuffles and writes, in one run.

Both work on the same file, in turn (A B A B …), each in a process of its own, so that what else the machine does hits
both alike. Printed are medians of seconds by the clock and of all processors, of speed and of the peak of memory (that
of all processes together, shared pages counted once), the medians of the ratios of the pairs, and the machine's load.

    python benchmarks/split.py                     100 MB, three pairs
    python benchmarks/split.py --megabytes 1000 --pairs 1
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
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

PLAIN = """
import json, random, sys
source, train, held_out = sys.argv[1:]
with open(source, encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]
random.Random(42).shuffle(rows)
cut = int(len(rows) * 0.9)
for path, part in ((train, rows[:cut]), (held_out, rows[cut:])):
    with open(path, "w", encoding="utf-8") as file:
        for row in part:
            file.write(json.dumps(row, ensure_ascii=False) + "\\n")
"""
WORDS = (
    "the lamp in kitchen please turn on off dim warm light evening when door opens set thermostat twenty degrees "
    "blinds half past seven and lock garage play quiet music bedroom until café größe zażółć mañana"
)


@dataclass(frozen=True)
class Cost:
    """What one run of a program took: `wall` and `cpu` in seconds, `memory` at its peak in MB."""

    wall: float
    cpu: float
    memory: float


def make_file(path: Path, megabytes: int) -> int:
    """Write chats of about 640 bytes each, all different; return how many."""
    generator, count, size = random.Random(0), 0, 0
    pairs = [[" ".join(generator.choices(WORDS.split(), k=length)) for length in (25, 60)] for _ in range(10_000)]
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 10**6:
            prompt, answer = pairs[count % len(pairs)]
            turns = [{"role": "user", "content": f"{count}: {prompt}"}, {"role": "assistant", "content": answer}]
            size += file.write(json.dumps({"messages": turns, "source": count % 7}, ensure_ascii=False) + "\n")
            count += 1
    return count


def cost(command: Sequence[str]) -> Cost:
    """Run a program and ask the system what it took, its own helpers included."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peaks, ended = [0], threading.Event()
    watch = threading.Thread(target=lambda: peaks.append(peak(process.pid, ended)))
    watch.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    ended.set()
    watch.join()
    if status:
        raise SystemExit(f"{command[0]} failed")
    unit = 1024 if sys.platform == "linux" else 1
    memory = max(*peaks, usage.ru_maxrss * unit)
    return Cost(wall, usage.ru_utime + usage.ru_stime, memory / 10**6)


def peak(process: int, ended: threading.Event) -> int:
    """Most bytes seen that a process and its children use; 0 where the system does not tell (all but Linux)."""
    found = 0
    while not ended.wait(0.1):
        with suppress(OSError):
            children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
            found = max(found, sum(map(proportional, [str(process), *children])))
    return found


def proportional(process: str) -> int:
    """Bytes that a process uses, shared ones in proportion."""
    rows = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(1024 * int(row.split()[1]) for row in rows if row.startswith("Pss:"))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="Where the files are; a temporary folder by default.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, train, held_out = (Path(folder) / name for name in ("rows.jsonl", "train.jsonl", "eval.jsonl"))
        rows = make_file(source, options.megabytes)
        size = source.stat().st_size / 10**6
        ours = [sys.executable, "-m", "llamafarm", "datasplit", str(source), "--overwrite", "--seed", "42"]
        ours += ["--train-output", str(train), "--eval-output", str(held_out)]
        plain = [sys.executable, "-c", PLAIN, str(source), str(train), str(held_out)]
        pairs = [(cost(ours), cost(plain)) for _ in range(options.pairs)]
    loads = " ".join(f"{load:.1f}" for load in os.getloadavg())
    print(f"{size:,.0f} MB, {rows:,} rows, {options.pairs} pairs; Python {platform.python_version()}, load {loads}\n")
    print("| way | s | CPU s | MB per s | peak memory, MB |\n|---|---|---|---|---|")
    for name, costs in (("datasplit", [a for a, _ in pairs]), ("read, parse, shuffle, write", [b for _, b in pairs])):
        wall, cpu = median(found.wall for found in costs), median(found.cpu for found in costs)
        memory = median(found.memory for found in costs)
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {size / wall:.0f} | {memory:,.0f} |")
    for what, ratios in (
        ("by the clock", [plain.wall / ours.wall for ours, plain in pairs]),
        ("in CPU seconds", [plain.cpu / ours.cpu for ours, plain in pairs]),
    ):
        print(f"\ndatasplit is {median(ratios):.1f} times as fast {what} ({min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
