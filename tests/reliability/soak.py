"""Faults at random instants: five signals, a full disk, I/O errors, jumps of file times; minutes on end.

    python tests/reliability/soak.py --minutes 60

A training is started again and again by the same command until it is finished, then another begins. A round counts if
it ends with the weights, best model and log of a training without a fault.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import signal
import sys
import time
from collections import Counter

from faults import FAIL_FROM, KINDS, Ended, Fault, Laboratory, laboratories

SIGNALS = {
    "kill": signal.SIGKILL,
    "term": signal.SIGTERM,
    "hang-up": signal.SIGHUP,
    "interrupt": signal.SIGINT,
    "checkpoint": signal.SIGUSR1,
}
ERRORS = {"full disk": errno.ENOSPC, "I/O error": errno.EIO}
EXPECTED = frozenset({0, 7, 75, 130, *(-number for number in SIGNALS.values())})
"""Before the program listens to it, a signal ends the process as the system does."""


def struck(laboratory: Laboratory, chance: random.Random, seconds: float, events: int) -> tuple[str, Ended]:
    """Run the command once, with one fault somewhere."""
    name = chance.choice([*SIGNALS, *ERRORS, "clock"])
    if name in ERRORS:
        return name, laboratory.child(Fault(FAIL_FROM, chance.randint(1, events), ERRORS[name]))
    if name == "clock":
        _jump(laboratory, chance)
        name = "kill"
    pid = laboratory.start(Fault())
    time.sleep(chance.uniform(0, seconds))
    os.kill(pid, SIGNALS[name])
    _, status = os.waitpid(pid, 0)
    said = laboratory.folder / "said"
    return name, Ended(os.waitstatus_to_exitcode(status), said.read_text() if said.exists() else "", 0)


def _jump(laboratory: Laboratory, chance: random.Random) -> None:
    """Give everything a time far from now, as after a jump of the clock."""
    moment = time.time() + chance.choice([-1, 1]) * chance.uniform(1e3, 1e9)
    for path in laboratory.run.rglob("*"):
        os.utime(path, (moment, moment))


def main() -> int:
    """Print what happened; 1 if a round is lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lost = 0
    for kind, laboratory in laboratories(KINDS):
        begun = time.monotonic()
        reference = laboratory.child()
        length, expected, chance = time.monotonic() - begun, laboratory.left(), random.Random(options.seed)
        end, rounds = begun + 30 * options.minutes, 0
        faults: Counter[str] = Counter()
        while time.monotonic() < end:
            laboratory.clean()
            wrong = ""
            for _ in range(chance.randint(1, 8)):
                name, ended = struck(laboratory, chance, length, reference.events)
                faults[name] += 1
                finished = ended.code == 9 and "LF-RUN-013" in ended.said
                if not finished and (ended.code not in EXPECTED or "Traceback" in ended.said):
                    wrong = f"{name}: exit {ended.code}: {ended.said[:400]}"
            wrong = wrong or laboratory.verdict(expected, laboratory.child())
            rounds += 1
            if wrong:
                lost += 1
                print(f"{kind}, round {rounds}: {wrong}", flush=True)
        told = ", ".join(f"{count} {name}" for name, count in sorted(faults.items()))
        minutes = (time.monotonic() - begun) / 60
        print(
            f"{kind}: {faults.total()} faults ({told}) in {rounds} rounds, {minutes:.0f} min, {lost} lost", flush=True
        )
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
