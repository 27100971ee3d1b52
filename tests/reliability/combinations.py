"""Resume trainings of many kinds at each of their checkpoints, and compare the ends bit by bit.

    python tests/reliability/combinations.py

Twelve settings have two values each. The 24 trainings are the rows of a Hadamard matrix and their opposites: any three
settings meet in all eight combinations of their values, so a fault that needs three settings at once is met. Each
training is carried out once in one go; then, for each checkpoint, a copy is left as a kill right after that checkpoint
leaves it, and goes on in new processes. The ends have to be the same, or the run has to say `not exact:` and why.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations, product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from forked import Command, Forks

FACTORS: Mapping[str, tuple[Any, Any]] = {
    "method": ("lora", "full"),
    "processes": (1, 2),
    "accumulation": (1, 3),
    "packing": (False, True),
    "data": ("file", "generated"),  # generating draws random numbers
    "dropout": (0.0, 0.1),
    "precision": ("fp32", "bf16"),
    "workers": (0, 2),
    "evaluation": (False, True),
    "checkpointing": (False, True),
    "optimizer": ("adamw_torch", "sgd"),
    "schedule": ("linear", "cosine"),
}
STEPS = 5
ROWS, HELD_OUT = 7, 4
SAMPLE = (1, 5, 9, 14, 20, 22)
"""Cases that by themselves cover all pairs of the first eight settings; what a change is tested with."""

Case = Mapping[str, Any]
UNTIMED = ("throughput", "elapsed_time", "remaining_time", "peak_memory")


def cases() -> list[Case]:
    """All 24."""
    squares = {number * number % 11 for number in range(1, 11)}
    paley = [[0] * 12] + [[0, *(int((column - row) % 11 in squares) for column in range(11))] for row in range(11)]
    signs = [*paley, *([1 - sign for sign in row] for row in paley)]
    return [{name: pair[sign] for (name, pair), sign in zip(FACTORS.items(), row, strict=True)} for row in signs]


def uncovered(chosen: Sequence[Case], together: int, among: int = 12) -> list[tuple[tuple[str, Any], ...]]:
    """The combinations of so many of the first settings that no case has."""
    missing: list[tuple[tuple[str, Any], ...]] = []
    for names in combinations(list(FACTORS)[:among], together):
        seen = {tuple(case[name] for name in names) for case in chosen}
        every = product(*(FACTORS[name] for name in names))
        missing += [tuple(zip(names, values, strict=True)) for values in every if values not in seen]
    return missing


def strategy(case: Case) -> dict[str, Any]:
    """The strategy of a case."""
    lora = {"type": "lora", "r": 4, "dropout": case["dropout"]}
    size = ROWS + HELD_OUT * case["evaluation"]
    dataset: dict[str, Any] = {"max_token_loss": 1}
    if case["data"] == "file":
        dataset |= {"path": "rows.jsonl", "max_samples": size}
    else:
        dataset["generate"] = {"name": "smart-home", "size": size, "languages": ["english"], "seed": 3}
    training = {
        "max_steps": STEPS,
        "batch_size": 2,
        "gradient_accumulation_steps": case["accumulation"],
        "learning_rate": 1e-2 if case["method"] == "lora" else 1e-3,
        "logging_steps": 1,
        "max_seq_length": 96,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": STEPS,
        "packing": case["packing"],
        "bf16": case["precision"] == "bf16",
        "dataloader_num_workers": case["workers"],
        "eval_strategy": "steps" if case["evaluation"] else "no",
        "eval_steps": 2,
        "load_best_model_at_end": case["evaluation"],
        "gradient_checkpointing": case["checkpointing"],
        "optim": case["optimizer"],
        "lr_scheduler_type": case["schedule"],
        "warmup_steps": 2 if case["schedule"] == "cosine" else 0,
    }
    config = {
        "base_model": "dropout" if case["dropout"] and case["method"] == "full" else "plain",
        "dataset": dataset,
        "method": lora if case["method"] == "lora" else {"type": "full"},
        "training": training,
    }
    parts: dict[str, Any] = {"fine_tuner": {"config": config}}
    if case["evaluation"]:
        parts["data_splitter"] = {"type": "random", "config": {"eval_rows": HELD_OUT, "seed": 0}}
    return {"name": "case", **parts}


def prepared(folder: Path) -> None:
    """Write rows and base models: one as it is, one whose attention drops scores."""
    from llamafarm.testing._tiny import build_model
    from llamafarm.testing.rows import make_fields

    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_fields(ROWS + HELD_OUT)))
    plain = build_model("llama", folder / "plain")
    shutil.copytree(plain, folder / "dropout")
    config = json.loads((plain / "config.json").read_text())
    (folder / "dropout" / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.2}))


@dataclass(frozen=True)
class Outcome:
    """What came of going on at a checkpoint.

    Attributes:
        step: The checkpoint's.
        same: Weights, best weights, and log are those of the run in one go, bit by bit.
        said: The run said that it is not exact, and why.
        wrong: Anything else that is not right.
    """

    step: int
    same: bool
    said: bool
    wrong: str = ""

    @property
    def verdict(self) -> str:
        """What is wrong; nothing if nothing is: inexact and silent is the one thing that may not be."""
        if self.wrong:
            return f"checkpoint-{self.step}: {self.wrong}"
        return "" if self.same or self.said else f"checkpoint-{self.step}: another end, and not a word of it"


class Trial:
    """Carries out cases in a folder."""

    def __init__(self, forks: Forks, folder: Path) -> None:
        self._forks, self._folder = forks, folder

    def outcomes(self, number: int, case: Case) -> Iterator[Outcome]:
        """Train a case, and go on at each of its checkpoints."""
        straight = self._folder / f"case-{number}"
        (self._folder / f"{number}.yaml").write_text(json.dumps(strategy(case)))
        code, said = self.train(["-s", f"{number}.yaml", "-o", straight.name], case["processes"])
        if code != 0:
            yield Outcome(0, same=False, said=False, wrong=f"exit code {code}: {said[-800:]}")
            return
        expected = result(straight)
        for step in range(1, STEPS + 1):
            copy = self._folder / f"case-{number}-at-{step}"
            killed_after(straight, copy, step)
            code, said = self.train(["--resume", copy.name], case["processes"])
            wrong = f"exit code {code}: {said[-800:]}" if code else ""
            if not wrong and f"resumed from checkpoint-{step}, step {step} of {STEPS}" not in said:
                wrong = f"did not resume: {said[-800:]}"
            yield Outcome(step, not wrong and result(copy) == expected, "not exact: " in said, wrong)
            shutil.rmtree(copy)
        shutil.rmtree(straight)

    def train(self, argv: Sequence[str], processes: int) -> tuple[int, str]:
        """Carry out `llamafarm train ARGV` in so many processes: the worst exit code, and what they said."""
        told = {name: value for name, value in os.environ.items() if not name.startswith("LLAMAFARM")}
        told |= {"LLAMAFARM_HOME": str(self._folder / ".home"), "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
        told |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        if processes == 1:
            return self._forks.run(["train", *argv], self._folder, told)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        told |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        commands: list[Command] = [
            self._forks.start(["train", *argv], self._folder, told | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(processes)
        ]
        codes = [abs(command.wait()) for command in commands]
        return max(codes), "".join(command.said() for command in commands)


def killed_after(straight: Path, copy: Path, step: int) -> None:
    """Copy a run as a kill right after a checkpoint would have left it."""
    later = [f"checkpoint-{number}" for number in range(step + 1, STEPS + 1)]
    result_of = [path.name for path in straight.iterdir() if path.is_file() and path.name != "trainer_log.jsonl"]
    shutil.copytree(straight, copy, ignore=lambda folder, _: [*later, *result_of] if Path(folder) == straight else [])
    manifest = copy / "llamafarm" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"completed"', '"running"'))


def result(folder: Path) -> tuple[dict[str, str], list[dict[str, Any]], Any]:
    """What has to be the same: all tensors of the result, the best model and the last checkpoint; log; history."""
    tensors = {
        str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest()
        for part in (folder, folder / "checkpoint-best", folder / f"checkpoint-{STEPS}")
        for file in sorted(part.glob("*.safetensors"))
    }
    lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return tensors, [{key: line[key] for key in line if key not in UNTIMED} for line in lines], history


def main() -> int:
    """Print what happened; 1 if a case is lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", action="store_true", help="only the cases that a change is tested with")
    options = parser.parse_args()
    lost = resumed = exact = 0
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as place, Forks(Path(place)) as forks:
        prepared(Path(place))
        trial = Trial(forks, Path(place))
        for number, case in enumerate(cases()):
            if options.sample and number not in SAMPLE:
                continue
            outcomes = list(trial.outcomes(number, case))
            wrong = [outcome.verdict for outcome in outcomes if outcome.verdict]
            lost += bool(wrong)
            resumed += len(outcomes)
            exact += sum(outcome.same and not outcome.said for outcome in outcomes)
            print(
                f"{number} {', '.join(f'{name} {value}' for name, value in case.items())}: {wrong or 'good'}",
                flush=True,
            )
    took = time.monotonic() - begun
    print(f"{resumed} resumed runs, {exact} bit-identical, {lost} cases lost, {took:.0f} s")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
