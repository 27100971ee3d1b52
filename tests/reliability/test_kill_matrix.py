"""A sample of the kill matrix; `make kill-matrix` and `make faults` run all of it, half an hour and more each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="seccomp is Linux's"),
    pytest.mark.skipif(os.system("cc --version > /dev/null 2>&1") != 0, reason="there is no C compiler"),
]


def matrix(*options: str, at_least: int) -> None:
    """Run a sample; every point of it must be good, however many changes a run makes.

    It has a process of its own: it forks, and a filter of system calls stays for ever.
    """
    done = subprocess.run(
        [sys.executable, str(HERE / "kill_matrix.py"), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    if "Operation not permitted" in done.stderr or "Invalid argument" in done.stderr:
        pytest.skip("this system lets no process filter its own calls")
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()[-1]
    counted = re.match(r"lora \w+: (\d+) of (\d+) points \(", said)
    assert counted, said
    good, tried = map(int, counted.groups())
    assert good == tried >= at_least, said


def test_a_run_killed_at_any_change_of_the_file_system_ends_as_one_that_was_not():
    # every 41st: before the manifest, in each checkpoint, between two renames, in the result
    matrix("--kind", "lora", "--every", "41", "--first", "5", at_least=10)


def test_what_was_not_synced_may_be_lost():
    matrix("--kind", "lora", "--fault", "power", "--every", "97", "--first", "60", at_least=4)


def test_a_full_disk_costs_nothing_that_was_kept():
    matrix("--kind", "lora", "--fault", "full", "--every", "170", "--first", "150", at_least=2)


def test_some_of_what_was_not_synced_may_be_lost():
    matrix("--kind", "lora", "--fault", "order", "--every", "97", "--first", "30", at_least=4)
