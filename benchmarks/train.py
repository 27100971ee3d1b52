"""Compares training of adapters in one run: ours step by step, transformers.Trainer, TRL, torchtune and LLaMA-Factory.

Every way trains the same model (random weights) on the same rows with the same hyper-parameters, in a process of its
own, in turn (A B A B …), so that what else the machine does hits all alike. Printed are medians: CPU seconds and
seconds of the optimizer steps, real tokens (padding not counted) a CPU second, the share of the matrix products that
the processor can do (measured in the same run), how many times faster than the first way (median over the rounds), peak
memory, CPU seconds of the whole process, and the losses of the first and the last step, which show that all compute the
same. A way that fails, or takes longer than `--timeout`, is a row that says so.

    python benchmarks/train.py                     ours and Trainer: small model, 64 rows, two rounds
    python benchmarks/train.py --model m --rows 32
    python benchmarks/train.py --threads 1 2
    python benchmarks/train.py --peers FOLDER      and TRL and torchtune, in environments that are made in FOLDER
    python benchmarks/train.py --llamafactory FOLDER/bin/python
    python benchmarks/train.py --ways trainer fused_bf16 --rounds 3
    python benchmarks/train.py --ablation          each of our ways alone, and together
    python benchmarks/train.py --method dora       another method, in ours and Trainer: dora, qlora, qdora
    python benchmarks/train.py --output found.json keeps what is measured, and goes on from there when called again
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent / "training"
sys.path.insert(0, str(SCRIPTS))

from inputs import SIZES, needed_flops, write_inputs  # noqa: E402  # a script's neighbour
from table import OURS, Figures, goals, table  # noqa: E402  # as well

ABLATION = (
    "plain",
    "products",
    "head",
    "documents",
    "documents+head",
    "adapters",
    "uncompiled",
    "uncompiled_bf16",
    *OURS,
)
TRAINER = ("trainer", "trainer_grouped", "trainer_bf16")
TRL = ("trl", "trl_fp32", "trl_packed_fp32", "trl_packed_bf16")
TORCHTUNE = ("torchtune", "torchtune_fp32", "torchtune_packed_fp32", "torchtune_packed_bf16")
LLAMAFACTORY = ("llamafactory", "llamafactory_packed_fp32", "llamafactory_packed_bf16")
METHODS = ("lora", "dora", "qlora", "qdora")
SCRIPT = {"trainer": "peers.py", "trl": "peers.py", "llamafactory": "peers.py", "torchtune": "tune.py"}
"""A program's name → what trains with it; all else is ours."""
MADE = {
    "trl": ("trl==1.16.*",),
    "torchtune": ("torchtune==0.6.1", "torchao==0.10.0", "sentencepiece", "tiktoken", "blobfile", "kagglehub"),
}
"""What environments that are made here have besides what this one has."""


@dataclass(frozen=True)
class Bench:
    """One comparison.

    Attributes:
        folder: The model and the rows.
        threads: For products.
        interpreters: A program's name → its Python.
        timeout: Seconds that one way may take.
        method: lora, dora, qlora or qdora.
    """

    folder: Path
    threads: int
    interpreters: Mapping[str, str]
    timeout: float
    method: str

    def measure(self, way: str) -> dict[str, Any]:
        """Train one way in a process of its own; nothing but a reason if it fails."""
        family = way.split("_", maxsplit=1)[0]
        python, script = self.interpreters.get(family, sys.executable), SCRIPTS / SCRIPT.get(family, "ours.py")
        command = [python, str(script), way, str(self.folder), self.method]
        found = self._last_line(command)
        told = str(found.get("failed", "")) or "{train:.2f} s of {whole:.1f}, {memory:,.0f} MiB".format(**found)
        print(f"{way}: {told}", file=sys.stderr, flush=True)
        return found

    def limit(self) -> dict[str, Any]:
        """GFLOP a CPU second."""
        return self._last_line([sys.executable, str(SCRIPTS / "limit.py")])

    def _last_line(self, command: Sequence[str]) -> dict[str, Any]:
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1"}
        environment |= {"PYTHONPATH": str(SCRIPTS), "DISABLE_VERSION_CHECK": "1", "PYTHONDONTWRITEBYTECODE": ""}
        # threads that wait for others do not count as work: where other programs run, they would be most of it
        environment |= {"OMP_WAIT_POLICY": "PASSIVE"}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False, timeout=self.timeout
            )
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            return {"failed": f"took longer than {self.timeout:.0f} s"}
        except (OSError, ValueError, IndexError) as error:  # no such Python, or nothing that it said
            lines = [str(error)] if isinstance(error, OSError) else [line for line in done.stderr.splitlines() if line]
            return {"failed": lines[-1].strip()[-200:].replace("|", "/") if lines else "no figures"}
        return found


def made(folder: Path, name: str) -> str:
    """The Python of an environment with a program, which is made if need be; all else in it is this environment's."""
    python = folder / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        site = next((folder / name / "lib").glob("python*/site-packages"))
        (site / "beside.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")))
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", *MADE[name]], check=True)
    return str(python)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> str:
    names = ("torch", "transformers", "peft")
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)])


def _ways(options: argparse.Namespace) -> list[str]:
    if options.ways:
        return list(options.ways)
    if options.ablation:
        return ["trainer", *ABLATION]
    peers = [*((*TRL, *TORCHTUNE) if options.peers else ()), *(LLAMAFACTORY if options.llamafactory else ())]
    return [*TRAINER, *peers, *OURS]


class Store:
    """What was measured, in memory and in a file, so that a run that is stopped goes on where it was.

    Attributes:
        found: Number of threads → way → its rounds; and the limits of each round under "limit".
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self._path, self._settings = path, dict(settings)
        self.found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        if path is not None and path.exists():
            kept = json.loads(path.read_text())
            if kept["settings"] != self._settings:
                sys.exit(f"{path} holds figures of {kept['settings']}, not of {self._settings}: name another file")
            self.found = kept["found"]
            for runs in [runs for ways in self.found.values() for runs in ways.values()]:
                while runs and "failed" in runs[-1]:  # once more
                    runs.pop()

    def rounds(self, threads: int, way: str) -> list[dict[str, Any]]:
        """The rounds of a way so far."""
        return self.found.setdefault(str(threads), {}).setdefault(way, [])

    def add(self, threads: int, way: str, figures: dict[str, Any]) -> None:
        """Keep another round."""
        self.rounds(threads, way).append(figures)
        if self._path is not None:
            beside = self._path.with_name(f"{self._path.name}.new")
            beside.write_text(json.dumps({"settings": self._settings, "found": self.found}, indent=1))
            beside.replace(self._path)


def measure(options: argparse.Namespace, folder: Path, ways: Sequence[str], store: Store) -> None:
    """Measure all ways in turn, whatever of them is not in the store."""
    used = {way.split("_")[0] for way in ways} & MADE.keys() if options.peers else ()
    interpreters = {name: made(options.peers.resolve(), name) for name in sorted(used)}
    interpreters |= {"llamafactory": options.llamafactory} if options.llamafactory else {}
    for done in range(options.rounds):
        for threads in options.threads:
            bench = Bench(folder, threads, interpreters, options.timeout, options.method)
            if len(store.rounds(threads, "limit")) <= done:
                store.add(threads, "limit", bench.limit())
            for way in ways:
                if len(store.rounds(threads, way)) <= done:
                    store.add(threads, way, bench.measure(way))


def report(options: argparse.Namespace, ways: Sequence[str], store: Store, tokens: int, needed: float) -> None:
    """Print the tables."""
    print(f"Model `{options.model}`, {options.method}, {options.rows} rows, {tokens:,} tokens,")
    print(f"{needed / 1e3:.3f} TFLOP needed, medians of {options.rounds} round(s), {_processor()}, {_versions()}.")
    for threads in options.threads:
        limits = store.rounds(threads, "limit")
        figures = Figures({way: store.rounds(threads, way) for way in ways}, limits, tokens, needed)
        names = [name for name in ("float32", "bfloat16") if any(name in limit for limit in limits)]
        best = ", ".join(f"{max(limit[name] for limit in limits if name in limit):.0f} in {name}" for name in names)
        print(f"\n{threads} thread(s); limit, GFLOP a CPU second: {best}.\n\n{table(figures)}\n")
        if not options.ablation and options.method == "lora":
            print(goals(figures, options.model))


def main() -> None:
    """Measure, and print what there is, even if the run is stopped."""
    known = [*TRAINER, *TRL, *TORCHTUNE, *LLAMAFACTORY, *ABLATION]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="s")
    parser.add_argument("--method", choices=METHODS, default="lora")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--peers", type=Path, help="folder of environments with TRL and torchtune; made if need be")
    parser.add_argument("--llamafactory", help="Python of an environment that has LLaMA-Factory")
    parser.add_argument("--ways", nargs="+", choices=known)
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds that one way may take")
    parser.add_argument("--output", type=Path, help="JSON file for what is measured; if it exists, the run goes on")
    options = parser.parse_args()
    ways = _ways(options)
    if options.method != "lora" and any(way not in (*TRAINER, *ABLATION) for way in ways):
        parser.error(f"{options.method} is compared with Trainer alone")
    given = {**dict.fromkeys(MADE, options.peers), "llamafactory": options.llamafactory}
    missing = [name for name, place in given.items() if not place and any(way.split("_")[0] == name for way in ways)]
    if missing:
        parser.error(f"no environment for {' and '.join(missing)}: see --peers and --llamafactory")
    store = Store(options.output, {"model": options.model, "method": options.method, "rows": options.rows})
    with tempfile.TemporaryDirectory() as name:
        rows = write_inputs(Path(name), options.model, options.rows)
        try:
            measure(options, Path(name), ways, store)
        except KeyboardInterrupt:
            print("stopped: this is what there is", file=sys.stderr)
    report(options, ways, store, sum(len(row.ids) for row in rows), needed_flops(rows, SIZES[options.model]) / 1e9)


if __name__ == "__main__":
    main()
