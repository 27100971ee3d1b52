"""Stop or kill one of two processes that train together, at random instants, and compare the end.

    python tests/reliability/ranks.py --points 40

Nobody but the processes themselves looks after them here: there is no launcher. A point counts if all processes are
gone in time, the one that is left says which was lost and ends with exit code 75, and the same command started again
ends with the weights and the log of a training that nothing happened to.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from forked import Command, Forks

LIMIT = 2.0
"""Seconds of silence that are suffered."""

STILL = 6.0
"""The same for a main thread that stands still: longer than a busy machine takes for a step."""

PATIENT = ("--set", "training.heartbeat_timeout=120")
"""For trainings that nothing happens to, on a machine that may be busy with something else for seconds."""

IN_TIME = {signal.SIGSTOP: LIMIT + 5, signal.SIGKILL: 10.0}
STRATEGY = {
    "name": "two",
    "fine_tuner": {
        "config": {
            "base_model": "builtin:tiny",
            "dataset": {"path": "rows.jsonl", "eval_path": "eval.jsonl"},
            "method": {"type": "lora", "r": 4, "dropout": 0.1},
            "training": {
                "max_steps": 12,
                "batch_size": 2,
                "logging_steps": 1,
                "save_steps": 3,
                "save_strategy": "steps",
                "eval_strategy": "steps",
                "eval_steps": 4,
                "max_seq_length": 64,
                "heartbeat_timeout": LIMIT,
            },
        }
    },
}


@dataclass(frozen=True)
class Struck:
    """What came of it.

    Attributes:
        codes: Exit codes of both; None: still there when time was up.
        seconds: From the signal until both were gone.
        said: What both wrote to stderr.
    """

    codes: tuple[int | None, int | None]
    seconds: float
    said: str


class Pair:
    """Two processes that train together, in a folder."""

    def __init__(self, forks: Forks, folder: Path) -> None:
        self._forks, self._folder = forks, folder

    def start(self, name: str, more: Sequence[str] = (), *, resume: bool = False, late: float = 0) -> list[Command]:
        """Start both, or let both go on; the second some seconds late."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        told = {name: value for name, value in os.environ.items() if not name.startswith("LLAMAFARM")}
        told |= {"LLAMAFARM_HOME": str(self._folder / ".home"), "NO_COLOR": "1", "WORLD_SIZE": "2"}
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        told |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        argv = ["train", *(("--resume", name) if resume else ("-s", "strategy.yaml", "-o", name)), *more]
        both = []
        for rank in range(2):
            time.sleep(late * rank)
            both.append(self._forks.start(argv, self._folder, told | {"RANK": str(rank), "LOCAL_RANK": str(rank)}))
        return both

    def finish(self, name: str) -> tuple[int, str]:
        """Go on, or begin if nothing was written: the worse exit code, and what both said."""
        both = self.start(name, PATIENT, resume=(self._folder / name / "llamafarm").is_dir())
        return max(abs(command.wait()) for command in both), "".join(command.said() for command in both)

    def strike(self, name: str, rank: int, number: signal.Signals, after: str, seconds: float = 0.0) -> Struck:
        """Start both, and give one a signal some seconds after the first has said something."""
        both = self.start(name)
        both[0].wait_for(after)
        time.sleep(seconds)
        begun = time.monotonic()
        if _lives(both[rank].pid):
            both[rank].send_signal(number)
        return self._ended(both, begun, IN_TIME[number])

    @staticmethod
    def _ended(both: Sequence[Command], begun: float, seconds: float) -> Struck:
        # a process that is stopped after all its work harms nobody; a launcher ends it
        while any(_lives(command.pid) for command in both) and time.monotonic() < begun + seconds + 5:
            time.sleep(0.02)
        took = time.monotonic() - begun
        codes: list[int | None] = []
        for command in both:
            left = _lives(command.pid)
            if left:
                command.send_signal(signal.SIGKILL)
            codes.append(command.wait() if not left else command.wait() and None)
        return Struck((codes[0], codes[1]), took, "".join(command.said() for command in both))

    def block(self, name: str) -> Struck:
        """Start both, and let the first stand still for ever in its log after four steps, as if its disk did.

        Its heartbeat goes on: only its main thread waits, in the system, for somebody to read from a pipe.
        """
        both = self.start(name, ("--set", f"training.heartbeat_timeout={STILL}"))
        both[0].wait_for("step=4/12")
        log = self._folder / name / "trainer_log.jsonl"
        os.mkfifo(self._folder / "pipe")
        begun = time.monotonic()
        (self._folder / "pipe").replace(log)
        return self._ended(both, begun, STILL + 5)

    def result(self, name: str) -> tuple[str, str, list[tuple[object, ...]]]:
        """What has to be the same: weights, best weights, log."""
        folder = self._folder / name
        lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
        last, best = (
            sha256((part / "adapter_model.safetensors").read_bytes()).hexdigest()
            for part in (folder, folder / "checkpoint-best")
        )
        return last, best, [(line["current_steps"], line.get("loss"), line.get("eval_loss")) for line in lines]


def verdict(struck: Struck, rank: int, number: signal.Signals) -> str:
    """What is wrong with the way it ended; nothing if nothing is."""
    left = struck.codes[1 - rank]
    if left == 0:  # the work was done
        return "" if struck.codes[rank] in (0, None, -number, -signal.SIGKILL) else f"exit codes {struck.codes}"
    if None in struck.codes:
        return f"still there after {struck.seconds:.1f} s: exit codes {struck.codes}"
    if struck.codes != ((75, -9) if rank else (-9, 75)):
        return f"exit codes {struck.codes}: {struck.said[-600:]}"
    if struck.seconds > IN_TIME[number]:
        return f"{struck.seconds:.1f} s"
    which = "LF-RUN-070" if number == signal.SIGSTOP else "LF-RUN-071"
    if struck.said.count(f"process {rank} of 2") != 1 or which not in struck.said or "Traceback" in struck.said:
        return f"said: {struck.said[-600:]}"
    return ""


def prepared(folder: Path) -> None:
    """Write rows and strategy."""
    from llamafarm.testing.rows import make_fields

    lines = [json.dumps(row) + "\n" for row in make_fields(48)]
    (folder / "rows.jsonl").write_text("".join(lines[:40]))
    (folder / "eval.jsonl").write_text("".join(lines[40:]))
    (folder / "strategy.yaml").write_text(json.dumps(STRATEGY))


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def main() -> int:
    """Print what happened; 1 if a point is lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, lost = random.Random(options.seed), 0
    took: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place, Forks(Path(place)) as forks:
        folder = Path(place)
        prepared(folder)
        pair = Pair(forks, folder)
        both = pair.start("straight", PATIENT)
        both[0].wait_for("loading model")
        begun = time.monotonic()
        codes = [command.wait() for command in both]
        length = time.monotonic() - begun
        assert codes == [0, 0], both[0].said() + both[1].said()
        expected = pair.result("straight")
        for point in range(options.points):
            number, rank = (signal.SIGSTOP, signal.SIGKILL)[point % 2], point // 2 % 2
            after = chance.uniform(0, length)
            struck = pair.strike(f"run-{point}", rank, number, "loading model", after)
            wrong = verdict(struck, rank, number)
            code, said = pair.finish(f"run-{point}")
            done = code == 9 and "LF-RUN-013" in said
            if not wrong and (code != 0 and not done):
                wrong = f"resumed: exit {code}: {said[-600:]}"
            if not wrong and pair.result(f"run-{point}") != expected:
                wrong = "another result"
            lost += bool(wrong)
            late = struck.codes[1 - rank] == 0
            took.setdefault(f"{number.name} process {rank}{', after its work' if late else ''}", []).append(
                struck.seconds
            )
            print(
                f"{point} {number.name} process {rank} after {after:.2f} s: {wrong or 'good'} ({struck.seconds:.2f} s)",
                flush=True,
            )
    for name, seconds in sorted(took.items()):
        median = statistics.median(seconds)
        print(f"{name}: {len(seconds)} times, gone after {median:.1f} s (median), {max(seconds):.1f} s (worst)")
    print(f"{options.points - lost} of {options.points} points are good")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
