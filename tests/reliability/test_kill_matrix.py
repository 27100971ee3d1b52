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


def test_the_worst_of_a_loss_of_power(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    from power import lose_power

    run, graves = tmp_path / "run", tmp_path / "graves"
    for folder in (run, graves, run / "new"):
        folder.mkdir()
    for name in ("synced", "dirty"):
        (run / name).write_text("text")
    (run / "new" / "inner").write_text("text")
    (graves / "9").write_text("before")
    (run / "replaced").write_text("after")
    inode = {path.name: path.stat().st_ino for path in run.rglob("*")}
    events = [
        (1, "write", inode["synced"], "synced", ""),
        (2, "fsync", inode["synced"], "synced", ""),
        (3, "write", inode["dirty"], "dirty", ""),
        (4, "mkdir", 0, "old", ""),
        (5, "write", inode["inner"], "old/inner", ""),
        (6, "fsync", inode["inner"], "old/inner", ""),
        (7, "rename", 0, "old", "new"),
        (8, "fsync", 0, "", ""),
        (9, "rename", 0, ".part", "replaced"),
    ]
    lines = [
        "\t".join([str(n), op, str(i), f"{run}/{p}".rstrip("/"), f"{run}/{o}" if o else ""])
        for n, op, i, p, o in events
    ]
    (tmp_path / "log").write_text("\n".join(lines) + "\n")
    lose_power(run, tmp_path / "log", graves)
    found = {str(path.relative_to(run)): path.read_text() for path in run.rglob("*") if path.is_file()}
    assert found == {"synced": "text", "dirty": "", "new/inner": "text", ".part": "after", "replaced": "before"}
