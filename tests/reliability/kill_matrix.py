"""Kills a training at every change that it makes to the file system, again while it recovers, and compares the end.

    python tests/reliability/kill_matrix.py                    every event, LoRA and full fine-tuning
    python tests/reliability/kill_matrix.py --every 10         a sample
    python tests/reliability/kill_matrix.py --fault power      loses what was not synced, too; `order`: some of it
    python tests/reliability/kill_matrix.py --fault full       no space from event n on; `io`: I/O errors
    python tests/reliability/kill_matrix.py --fault recovery   kills the recovery of a killed run at each of its events

A point counts if the same command, given again, ends with the same weights, best model and log, to the last bit.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile

from faults import ERRORS, FAIL_FROM, KILL, KINDS, Ended, Fault, Laboratory, Left, laboratories
from power import lose_power

Point = Callable[[Laboratory, int], Ended]


def killed(laboratory: Laboratory, number: int) -> Ended:
    """Killed at an event, then the command again."""
    laboratory.child(Fault(KILL, number))
    return laboratory.child()


def without_power(laboratory: Laboratory, number: int, chance: random.Random | None = None) -> Ended:
    """The same, and what was not synced is lost; all of it, if chance does not decide."""
    log, graves = laboratory.folder / "events.log", laboratory.folder / "graves"
    shutil.rmtree(graves, ignore_errors=True)
    graves.mkdir()
    laboratory.child(Fault(KILL, number), log=log, graves=str(graves))
    lose_power(laboratory.run, log, graves, chance)
    return laboratory.child()


def out_of_order(laboratory: Laboratory, number: int) -> Ended:
    """The same, and what was not synced is lost in part: names of one folder and not of another, half of a file."""
    return without_power(laboratory, number, random.Random(number))


def refused(error: int) -> Point:
    """From an event on the disk refuses everything that needs space (or everything); then it works again."""

    def point(laboratory: Laboratory, number: int) -> Ended:
        first = laboratory.child(Fault(FAIL_FROM, number, error))
        if first.code not in (0, 7) or "Traceback" in first.said:
            return Ended(70, f"with the fault: exit {first.code}: {first.said}", 0)
        return first if first.code == 0 else laboratory.child()

    return point


def recovery_killed(at: int) -> Point:
    """A run that was killed at `at` is recovered, and the recovery is killed."""

    def point(laboratory: Laboratory, number: int) -> Ended:
        laboratory.child(Fault(KILL, at))
        laboratory.child(Fault(KILL, number))
        return laboratory.child()

    return point


def matrix(laboratory: Laboratory, point: Point, numbers: Iterable[int], expected: Left) -> Iterator[tuple[int, str]]:
    """Each point with what is wrong at it."""
    for number in numbers:
        laboratory.clean()
        ended = point(laboratory, number)
        yield number, laboratory.verdict(expected, ended)


def main() -> int:
    """Print the score; 1 if a point is lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", choices=("kill", "recovery", "power", "order", "full", "io"), default="kill")
    parser.add_argument("--kind", choices=KINDS, action="append", help="both, if none is named")
    parser.add_argument("--every", type=int, default=1, help="only each n-th event")
    parser.add_argument("--first", type=int, default=1, help="begin at this event")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long; the order is drawn")
    options = parser.parse_args()
    lost = 0
    for kind, laboratory in laboratories(options.kind or KINDS):
        log = laboratory.folder / "reference.log"
        reference = laboratory.child(log=log)
        expected, begun = laboratory.left(), time.monotonic()
        names = dict(line.split("\t", 1) for line in log.read_text().splitlines())
        total = reference.events
        if options.fault == "recovery":
            laboratory.clean()
            point = recovery_killed(total * 2 // 3)
            laboratory.child(Fault(KILL, total * 2 // 3))
            total = laboratory.child().events
        elif options.fault == "kill":
            point = killed
        elif options.fault in ("power", "order"):
            point = without_power if options.fault == "power" else out_of_order
        else:
            point = refused(ERRORS[options.fault])
        found: Counter[str] = Counter()
        numbers = list(range(options.first, total + 1, options.every))
        if options.minutes < 1e9:
            random.Random(total).shuffle(numbers)
        end = begun + 60 * options.minutes
        in_time = takewhile(lambda _, end=end: time.monotonic() < end, numbers)
        for number, wrong in matrix(laboratory, point, in_time, expected):
            found["good" if not wrong else "bad"] += 1
            if wrong:
                said = names.get(str(number), "").replace("\t", " ").replace(str(laboratory.folder), "")
                print(f"{kind} {options.fault} {number} ({said}): {wrong}", flush=True)
        seconds = time.monotonic() - begun
        print(
            f"{kind} {options.fault}: {found['good']} of {found.total()} points ({total} events), {seconds:.0f} s",
            flush=True,
        )
        lost += found["bad"]
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
