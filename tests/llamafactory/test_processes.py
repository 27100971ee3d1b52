"""Whoever ends whom: no process is left, and what is there can be gone on from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LONG = {"max_steps": 2000, "batch_size": 2, "logging_steps": 1, "save_steps": 3, "learning_rate": 1e-3}
LONG |= {"dataloader_num_workers": 1}  # one more process that must not stay
_WAIT_S = 600


@pytest.fixture
def started(tmp_path: Path):
    """A training that goes on until somebody ends it: our process, and the group of LLaMA-Factory's."""
    config = {"base_model": "builtin:tiny", "dataset": {"generate": "smart-home"}, "training": LONG}
    config |= {"method": {"type": "lora", "r": 4}, "output_dir": "out"}
    (tmp_path / "s.yaml").write_text(json.dumps({"fine_tuner": {"type": "llamafactory", "config": config}}))
    command = [sys.executable, "-m", "llamafarm", "train", "--strategy", "s.yaml"]
    ours = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    output = tmp_path / "out" / "llamafarm" / "llamafactory" / "output"
    wait_for(lambda: (output / "checkpoint-3" / "trainer_state.json").is_file() or ours.poll() is not None)
    assert ours.poll() is None, ours.stderr.read().decode()
    (group,) = groups(tmp_path)
    yield ours, group, tmp_path
    for process in (ours.pid, *members(group)):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    ours.wait()
    ours.stderr.close()


def wait_for(condition) -> None:
    end = time.monotonic() + _WAIT_S
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


def groups(folder: Path) -> set[int]:
    """Process groups of LLaMA-Factory's that work in a folder."""
    found = set()
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            continue
        if process.name.isdigit() and "_launch.py" in command and str(folder) in command:
            found.add(os.getpgid(int(process.name)))
    return found


def members(group: int) -> list[int]:
    """Processes of a group that live."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(process.name))
    return found


def goes_on(folder: Path, step: int) -> None:
    """The run goes on after that step, and its log tells each step once."""
    command = [sys.executable, "-m", "llamafarm", "train", "--resume", "out", "--allow-changes"]
    command += ["--set", f"training.max_steps={step + 2}"]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    lines = [json.loads(line) for line in (folder / "out" / "trainer_log.jsonl").read_text().splitlines()]
    assert [line["current_steps"] for line in lines if "loss" in line] == list(range(1, step + 3))
    assert (folder / "out" / "adapter_model.safetensors").is_file()


def steps_saved(folder: Path) -> list[int]:
    """Steps with a whole checkpoint, in ascending order."""
    found = (folder / "out").rglob("checkpoint-*/trainer_state.json")
    return sorted({int(path.parent.name.rpartition("-")[2]) for path in found if "best" not in path.parent.name})


def test_when_ours_is_killed_nothing_is_left_and_the_run_goes_on(started):
    ours, group, folder = started
    ours.kill()
    ours.wait()
    wait_for(lambda: not members(group))
    whole = (folder / "out" / "llamafarm" / "llamafactory" / "output").glob("checkpoint-*/trainer_state.json")
    step = max(int(path.parent.name.rpartition("-")[2]) for path in whole)
    goes_on(folder, step)


def test_when_theirs_is_killed_the_run_fails_clearly(started):
    ours, group, folder = started
    os.kill(group, signal.SIGKILL)
    error = ours.stderr.read().decode()
    assert ours.wait() == 5
    assert "ended by SIGKILL" in error
    assert "LF-PLUGIN-077" in error
    assert "Traceback" not in error
    assert not members(group)
    assert (folder / "out" / "checkpoint-3" / "trainer_state.json").is_file()
    manifest = json.loads((folder / "out" / "llamafarm" / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    goes_on(folder, steps_saved(folder)[-1])


def test_a_checkpoint_on_request(started):
    ours, group, folder = started
    asked = time.monotonic()

    def beside_those_of_every_third_step() -> bool:
        nonlocal asked
        if time.monotonic() > asked + 5:  # the step of a request may be one of those
            ours.send_signal(signal.SIGUSR1)
            asked = time.monotonic()
        return any(step % 3 for step in steps_saved(folder))

    ours.send_signal(signal.SIGUSR1)
    wait_for(beside_those_of_every_third_step)
    assert ours.poll() is None
    assert members(group)


def test_ctrl_c_ends_after_the_step_with_a_checkpoint(started):
    ours, group, folder = started
    ours.send_signal(signal.SIGINT)
    assert "--resume" in ours.stderr.read().decode()
    assert ours.wait() == 130
    assert not members(group)
    log = [json.loads(line) for line in (folder / "out" / "trainer_log.jsonl").read_text().splitlines()]
    last = max(line["current_steps"] for line in log)
    assert (folder / "out" / f"checkpoint-{last}" / "optimizer.pt").is_file()
    goes_on(folder, last)
