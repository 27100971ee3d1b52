"""The end of the process: at once, after all that was registered for it, and not where somebody wants to see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path("/dev/full")

PROGRAM = """
import atexit, os, sys, threading, weakref
sys.modules["torch"] = sys  # as after a training
sys.argv = ["llamafarm", *{arguments}]
class Left: ...
left = Left()
kept = weakref.finalize(left, print, "finalized")
at_once = os._exit
os._exit = lambda code: (print("at once", flush=True), at_once(code))
atexit.register(print, "registered")
print("printed", end="")
{more}
from llamafarm.cli import main
main()
"""


def ended(arguments, more="", **options):
    code = PROGRAM.format(arguments=arguments, more=more)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **options)


def test_what_was_registered_is_done_and_nothing_is_taken_apart():
    done = ended(["--version"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("printed")
    assert "registered" in done.stdout
    assert "finalized" in done.stdout
    assert done.stdout.splitlines()[-1] == "at once"


def test_the_exit_code_stays():
    done = ended(["no-such-command"])
    assert done.returncode == 2
    assert "no-such-command" in done.stderr
    assert "at once" in done.stdout


SEEN = {
    "a thread at work": "import time\nthreading.Thread(target=lambda: (time.sleep(0.5), print('worked'))).start()",
    "a profiler": "import cProfile\ncProfile.Profile().enable()",
    "a debugger": "sys.settrace(lambda *_: None)",
}


@pytest.mark.parametrize("case", SEEN)
def test_who_wants_to_see_the_end_sees_it(case):
    done = ended(["--version"], SEEN[case])
    assert done.returncode == 0, done.stderr
    assert "registered" in done.stdout
    assert "at once" not in done.stdout
    assert ("worked" in done.stdout) == (case == "a thread at work")


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is full")
def test_what_cannot_be_printed_is_no_success():
    with FULL.open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(arguments=[], more="")],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode != 0
