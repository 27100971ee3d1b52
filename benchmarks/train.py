"""Compares training of adapters in one run: ours step by step, transformers.Trainer, TRL and LLaMA-Factory.

Every way trains the same model (random weights) on the same rows with the same hyper-parameters, in a process of its
own, in turn (A B A B …), so that what else the machine does hits all alike. Printed are medians: CPU seconds of the
optimizer steps, real tokens (padding not counted) a CPU second, the share of the matrix products that the processor
can do (measured in the same run), how many times faster than the first way (median over the rounds), peak memory, CPU
seconds of the whole process, and the losses of the first and the last step, which show that all compute the same.

    python benchmarks/train.py                     ours and Trainer: small model, 64 rows, two rounds
    python benchmarks/train.py --model m --rows 32
    python benchmarks/train.py --peers FOLDER      and TRL, in an environment that is made in FOLDER
    python benchmarks/train.py --llamafactory FOLDER/bin/python
    python benchmarks/train.py --ways trainer fused_bf16 --rounds 3
    python benchmarks/train.py --ablation          each of our ways alone, and together
    python benchmarks/train.py --method dora       another method, in ours and Trainer: dora, qlora, qdora
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

SCRIPTS = Path(__file__).resolve().parent / "training"
sys.path.insert(0, str(SCRIPTS))

from inputs import SIZES, Row, needed_flops, write_inputs  # noqa: E402  # a script's neighbour

OURS = ("generic", "fused", "generic_bf16", "fused_bf16")
ABLATION = ("plain", "products", "head", "documents", "documents+head", *OURS)
TRAINER = ("trainer", "trainer_grouped", "trainer_bf16")
TRL = ("trl", "trl_fp32", "trl_packed_fp32", "trl_packed_bf16")
LLAMAFACTORY = ("llamafactory", "llamafactory_packed_fp32", "llamafactory_packed_bf16")
METHODS = ("lora", "dora", "qlora", "qdora")
HALF = ("trl", "llamafactory_packed_bf16")
TRL_VERSION = "1.16.*"


@dataclass(frozen=True)
class Bench:
    """One comparison.

    Attributes:
        folder: The model and the rows.
        threads: For products.
        interpreters: A program's name → its Python.
        method: lora, dora, qlora or qdora.
    """

    folder: Path
    threads: int
    interpreters: Mapping[str, str]
    method: str

    def measure(self, way: str) -> dict[str, Any]:
        """Train one way in a process of its own; nothing but a reason if it fails."""
        family = way.split("_", maxsplit=1)[0]
        script = "peers.py" if family in ("trainer", "trl", "llamafactory") else "ours.py"
        command = [self.interpreters.get(family, sys.executable), str(SCRIPTS / script), way, str(self.folder)]
        command.append(self.method)
        found = self._last_line(command)
        told = str(found.get("failed", "")) or "{train:.2f} s of {whole:.1f}, {memory:,.0f} MiB".format(**found)
        print(f"{way}: {told}", file=sys.stderr, flush=True)
        return found

    def limit(self) -> dict[str, Any]:
        """GFLOP a CPU second."""
        return self._last_line([sys.executable, str(SCRIPTS / "limit.py")])

    def _last_line(self, command: Sequence[str]) -> dict[str, Any]:
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1"}
        environment |= {"PYTHONPATH": str(SCRIPTS), "DISABLE_VERSION_CHECK": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"failed": " ".join(done.stderr.split())[-300:]}
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def trl_python(folder: Path) -> str:
    """The Python of an environment with TRL, which is made if need be; all else in it is this environment's."""
    python = folder / "trl" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / "trl")], check=True)
        site = next((folder / "trl" / "lib").glob("python*/site-packages"))
        (site / "beside.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")))
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", f"trl=={TRL_VERSION}"]
        subprocess.run(install, check=True)
    return str(python)


def report(
    found: Mapping[str, list[dict[str, Any]]],
    limits: Sequence[Mapping[str, float]],
    rows: list[Row],
    options: argparse.Namespace,
) -> None:
    """Print the table."""
    tokens, needed = sum(len(row.ids) for row in rows), needed_flops(rows, SIZES[options.model]) / 1e9
    best = {name: max(limit[name] for limit in limits) for name in limits[0]}
    print(f"model {options.model}, {options.method}, {len(rows)} rows, {tokens:,} tokens,")
    print(f"{needed / 1e3:.3f} TFLOP needed, {options.threads} thread(s), medians of {options.rounds} round(s),")
    print(_processor())
    print("limit, GFLOP a CPU second: " + ", ".join(f"{name} {value:.0f}" for name, value in best.items()) + "\n")
    first = next(iter(found))
    heads = ("way", "train CPU s", "tokens/CPU s", "of the limit", f"times {first}")
    heads += ("peak MiB", "of its memory", "whole CPU s", "losses")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for way, runs in found.items():
        pairs = [(one, two) for one, two in zip(found[first], runs, strict=False) if "train" in one and "train" in two]
        if not pairs:
            print(f"| {way} | {runs[-1].get('failed', '') if runs else 'not measured'} |")
            continue
        train, memory, whole = (median(two[name] for _, two in pairs) for name in ("train", "memory", "whole"))
        faster = median(one["train"] / two["train"] for one, two in pairs)
        less = median(two["memory"] / one["memory"] for one, two in pairs)
        limit = best["bfloat16" if way.endswith("bf16") or way in HALF else "float32"]
        losses = pairs[-1][1]["losses"]
        cells = (f"{train:.2f}", f"{tokens / train:,.0f}", f"{needed / train / limit:.0%}", f"{faster:.2f}")
        cells += (f"{memory:,.0f}", f"{less:.2f}", f"{whole:.1f}", f"{losses[0]:.4f} → {losses[-1]:.4f}")
        print(f"| `{way}` | {' | '.join(cells)} |", flush=True)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _ways(options: argparse.Namespace) -> list[str]:
    if options.ways:
        return list(options.ways)
    if options.ablation:
        return ["trainer", *ABLATION]
    peers = [*(TRL if options.peers else ()), *(LLAMAFACTORY if options.llamafactory else ())]
    return [*TRAINER, *peers, *OURS]


def main() -> None:
    """Measure all ways in turn."""
    known = [*TRAINER, *TRL, *LLAMAFACTORY, *ABLATION]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="s")
    parser.add_argument("--method", choices=METHODS, default="lora")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", type=Path, help="folder for the environment with TRL; made if need be")
    parser.add_argument("--llamafactory", help="Python of an environment that has LLaMA-Factory")
    parser.add_argument("--ways", nargs="+", choices=known)
    parser.add_argument("--ablation", action="store_true")
    options = parser.parse_args()
    interpreters = {"trl": trl_python(options.peers.resolve())} if options.peers else {}
    interpreters |= {"llamafactory": options.llamafactory} if options.llamafactory else {}
    ways = _ways(options)
    missing = {family for way in ways if (family := way.split("_")[0]) in ("trl", "llamafactory")} - set(interpreters)
    if options.method != "lora" and any(way not in (*TRAINER, *ABLATION) for way in ways):
        parser.error(f"{options.method} is compared with Trainer alone")
    if missing:
        parser.error(f"no environment for {' and '.join(sorted(missing))}: see --peers and --llamafactory")
    with tempfile.TemporaryDirectory() as name:
        rows = write_inputs(Path(name), options.model, options.rows)
        bench = Bench(Path(name), options.threads, interpreters, options.method)
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        limits = []
        try:
            for _ in range(options.rounds):
                limits.append(bench.limit())
                for way in ways:
                    found[way].append(bench.measure(way))
        except KeyboardInterrupt:
            print("stopped: this is what there is", file=sys.stderr)
        if not limits:
            return
    report(found, limits, rows, options)


if __name__ == "__main__":
    main()
