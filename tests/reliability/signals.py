"""Deliver signals to a small training at random instants of its life, and go on with it.

    python tests/reliability/signals.py --each 50

A delivery counts if the exit code is the documented one, no step that was logged is without a checkpoint, there is no
traceback, and the run goes on to the weights and the log of one that nothing happened to.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from forked import Forks

CODES = {signal.SIGTERM: 75, signal.SIGHUP: 75, signal.SIGINT: 130, signal.SIGUSR1: 0}
GRACE = 30.0
"""Seconds that schedulers usually give."""

STEPS = 20
STRATEGY = {
    "name": "asked",
    "fine_tuner": {
        "config": {
            "base_model": "builtin:tiny",
            "dataset": "rows.jsonl",
            "method": {"type": "lora", "r": 4, "dropout": 0.1},
            "training": {
                "max_steps": STEPS,
                "batch_size": 2,
                "logging_steps": 1,
                "save_steps": 8,
                "max_seq_length": 64,
            },
        }
    },
}


class Place:
    """Where the runs are, and how they are started."""

    def __init__(self, forks: Forks, folder: Path) -> None:
        from llamafarm.testing.rows import make_fields

        self._forks, self.folder = forks, folder
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_fields(40)))
        (folder / "strategy.yaml").write_text(json.dumps(STRATEGY))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMAFARM")}
        self._told = kept | {"LLAMAFARM_HOME": str(folder / ".home"), "NO_COLOR": "1", "CUDA_VISIBLE_DEVICES": ""}

    def strike(self, name: str, number: signal.Signals, step: int, after: float) -> tuple[int, float, str]:
        """Train, with a signal some seconds after a step, or (0) after the program listens.

        Returns:
            Exit code, seconds from the signal to the end, and what was said.
        """
        command = self._forks.start(["train", "-s", "strategy.yaml", "-o", name], self.folder, self._told)
        command.wait_for(f"step={step}/{STEPS}" if step else "loading data")
        time.sleep(after)
        begun = time.monotonic()
        command.send_signal(number)
        return command.wait(), time.monotonic() - begun, command.said()

    def resume(self, name: str) -> tuple[int, str]:
        """Go on, or begin if nothing was written."""
        resume = (self.folder / name / "llamafarm").is_dir()
        argv = ["train", "--resume", name] if resume else ["train", "-s", "strategy.yaml", "-o", name]
        return self._forks.run(argv, self.folder, self._told)

    def log(self, name: str) -> list[tuple[object, ...]]:
        """Steps and their figures; none before the first."""
        path = self.folder / name / "trainer_log.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [(line["current_steps"], line.get("loss"), line.get("lr")) for line in lines]

    def result(self, name: str) -> tuple[str, list[tuple[object, ...]]]:
        """What has to be the same."""
        return sha256((self.folder / name / "adapter_model.safetensors").read_bytes()).hexdigest(), self.log(name)

    def lost(self, name: str) -> int:
        """Steps that were logged and are in no checkpoint."""
        kept = [int(path.name.rpartition("-")[2]) for path in (self.folder / name).glob("checkpoint-[0-9]*")]
        return max(0, max((int(str(line[0])) for line in self.log(name)), default=0) - max(kept, default=0))


def verdict(place: Place, name: str, number: signal.Signals, ended: tuple[int, float, str], expected: object) -> str:
    """What is wrong; nothing if nothing is."""
    code, seconds, said = ended
    if code not in (CODES[number], 0) or "Traceback" in said:
        return f"exit code {code}: {said[-400:]}"
    if code and seconds > GRACE:
        return f"{seconds:.1f} s"
    if lost := place.lost(name):
        return f"{lost} steps are lost"
    if code:
        again, said = place.resume(name)
        if again != 0 and not (again == 9 and "LF-RUN-013" in said):
            return f"resumed: exit code {again}: {said[-400:]}"
    return "" if place.result(name) == expected else "another result"


def _tell(took: dict[str, list[float]], ends: dict[str, int], count: int, wrong: int) -> None:
    """The table, so far."""
    print("signal and exit code, times:", ", ".join(f"{name}: {times}" for name, times in sorted(ends.items())))
    for name, seconds in took.items():
        print(f"{name}: gone after {statistics.median(seconds):.2f} s (median), {max(seconds):.2f} s (worst)")
    print(f"{count - wrong} of {count} deliveries are good", flush=True)


def main() -> int:
    """Print a table; 1 if a delivery does not count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, wrong = random.Random(options.seed), 0
    took: dict[str, list[float]] = {}
    ends: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder, Forks(Path(folder)) as forks:
        place = Place(forks, Path(folder))
        code, said = place.resume("straight")
        assert code == 0, said
        expected = place.result("straight")
        for delivery in range(options.each * len(CODES)):
            number, name = list(CODES)[delivery % len(CODES)], f"run-{delivery}"
            step = chance.choice((0, 0, 0, *range(1, STEPS + 1)))  # what comes before the first step is longer
            after = chance.uniform(0, 0.1 if step else 1.0)
            ended = place.strike(name, number, step, after)
            what = verdict(place, name, number, ended, expected)
            wrong += bool(what)
            if what:
                print(f"{delivery} {number.name} {after:.2f} s after step {step}: {what}", flush=True)
            if ended[0]:  # else it came to its end, and how long that took says nothing
                took.setdefault(number.name, []).append(ended[1])
            ends[f"{number.name} {ended[0]}"] = ends.get(f"{number.name} {ended[0]}", 0) + 1
            if (delivery + 1) % 40 == 0 or delivery + 1 == options.each * len(CODES):
                _tell(took, ends, delivery + 1, wrong)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
