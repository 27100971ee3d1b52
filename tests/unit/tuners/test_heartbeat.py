"""Processes of a run that look for signs of life of each other."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from llamafarm.errors import ExitCode, NumericError, Stopped
from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch.processes import Process, this_process

BUSY = """
import socket, sys, time
from pathlib import Path
from llamafarm_tuners.pytorch._heartbeat import _Watch
from llamafarm_tuners.pytorch.processes import Process, this_process

friend = socket.socket(fileno=int(sys.argv[1]))
watch = _Watch(0, [this_process(), Process(0, 4711, 0)], {1: friend}, 0.4, Path("run"))
watch.start()
print("started", flush=True)
time.sleep(60)  # as in a step that waits for no other process
"""

BLOCKED = """
import os, socket, sys, time
from pathlib import Path
from llamafarm_tuners.pytorch._heartbeat import _Watch
from llamafarm_tuners.pytorch.processes import Process, this_process
from llamafarm_tuners.pytorch.progress import PROGRESS

friend = socket.socket(fileno=int(sys.argv[1]))
watch = _Watch(1, [Process(0, 4711, 0), this_process()], {0: friend}, 0.4, Path("run"))
PROGRESS.at("a step")
watch.start()
print("started", flush=True)
for _ in range(8):
    time.sleep(0.2)
    PROGRESS.at("a step")
os.read(0, 1)  # the main thread stands still in the system; the heartbeat does not
"""

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is found in /proc")


def _started(script: str, theirs: socket.socket, **pipes: int) -> tuple[subprocess.Popen[str], float]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdout=subprocess.PIPE,
        text=True,
        **pipes,
    )
    theirs.close()
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process, time.monotonic()


def test_a_process_whose_main_thread_stands_still_gives_itself_up_and_nobody_else():
    ours, theirs = socket.socketpair()
    with ours:
        process, begun = _started(BLOCKED, theirs, stdin=subprocess.PIPE)
        heard, told = b"", None
        ours.settimeout(0.05)
        while process.poll() is None and time.monotonic() < begun + 30:
            with contextlib.suppress(OSError):
                heard += ours.recv(100)
                ours.send(b".\n")
            if told is None and b"lost 1 " in heard:
                told = time.monotonic() - begun
        with process:
            process.wait(10)
    assert told is not None
    # steps of 0.2 s were seen for 1.6 s: ten times that is suffered, less what a busy machine adds to a step
    assert told >= 1.6 + 2.0
    assert process.returncode == 75
    assert heard.rpartition(b"lost 1 ")[2].split()[1:] == [b"a", b"step"]


def test_what_takes_longer_than_ever_is_suffered_for_a_while():
    from llamafarm_tuners.pytorch.progress import TIMES, UNKNOWN, Progress

    progress = Progress()
    assert progress.now[1] == ""
    assert progress.allowed("a step", 2) == UNKNOWN, "nobody knows how long the first one takes"
    assert progress.allowed("a step", 120) == TIMES * 120
    progress.at("a step")
    time.sleep(0.05)
    before = progress.now
    with progress.elsewhere():
        assert progress.now[1] == "", "who waits for others is not the one that stands still"
        time.sleep(0.2)
    assert progress.now > before
    longest = progress.longest("a step")
    assert longest is not None
    assert 0.05 <= longest < 0.2, "without what it waited for others"
    assert progress.allowed("a step", 0.1) == TIMES * longest
    assert progress.allowed("a step", 60) == 60
    with pytest.raises(BrokenPipeError), progress.elsewhere("writing a checkpoint"):
        raise BrokenPipeError
    assert progress.now[1] == "a step"
    progress.rest()
    assert progress.now[1] == ""


def test_the_others_hear_in_what_it_stands_still():
    from llamafarm_tuners.pytorch._heartbeat import Lost

    processes = [Process(0, 17, 0), Process(0, 18, 0)]
    told = Lost(1, 2.04, "writing a checkpoint").told(processes)
    assert told.startswith("process 1 of 2 (pid 18) has stood still in writing a checkpoint for 2.0 s, since ")
    assert told.endswith("[LF-RUN-110]")


@pytest.mark.parametrize("dies", [True, False])
def test_a_process_whose_main_thread_waits_for_nobody_ends_too(dies):
    ours, theirs = socket.socketpair()
    with ours:
        process, begun = _started(BUSY, theirs, stderr=subprocess.PIPE)
        if dies:
            ours.close()
        with process:
            _, said = process.communicate(timeout=30)
    assert process.returncode == 75
    assert 3 <= time.monotonic() - begun < 3 + 0.4 + 5, "the main thread has three seconds to end in order"
    lost = "has died [LF-RUN-071]" if dies else "has shown no sign of life for 0."
    assert f"process 1 of 2 (pid 4711) {lost}" in said
    assert "go on with: llamafarm train --resume run" in said
    assert dies or "[LF-RUN-070]" in said


def test_who_shows_life_or_takes_leave_is_left_alone():
    ours, theirs = socket.socketpair()
    with ours:
        process, begun = _started(BUSY, theirs, stderr=subprocess.PIPE)
        while time.monotonic() - begun < 2:
            ours.send(b".\n")
            time.sleep(0.05)
        assert ours.recv(100).startswith(b".\n")
        ours.send(b"bye\n")
        ours.close()
        time.sleep(4)
        assert process.poll() is None
        with process:
            process.kill()


def test_an_exchange_that_fails_is_no_defect(tmp_path):
    from llamafarm_tuners.pytorch._heartbeat import heartbeat

    two, run = SimpleNamespace(num_processes=2), RecordingRun(tmp_path)
    with pytest.raises(Stopped) as stopped, heartbeat(two, 0, run):
        raise RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv")
    assert stopped.value.exit_code == ExitCode.REQUEUE
    assert "[LF-RUN-072]" in stopped.value.message
    with pytest.raises(ZeroDivisionError), heartbeat(two, 0, run):
        raise ZeroDivisionError
    with pytest.raises(NumericError), heartbeat(two, 0, run):
        raise NumericError.of("LF-NUMERIC-001", "gloo")


@linux
def test_a_process_that_stands_still_is_killed_and_no_other_one():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    own = this_process()
    from llamafarm_tuners.pytorch import processes

    process.send_signal(signal.SIGSTOP)
    Process(own.machine, process.pid, 1).kill()  # one that had its number before
    Process(own.machine + 1, process.pid, processes._started(process.pid)).kill()  # on another machine
    Process(own.machine, process.pid, 0).kill()
    time.sleep(0.1)
    assert process.poll() is None
    Process(own.machine, process.pid, processes._started(process.pid)).kill()
    assert process.wait(10) == -signal.SIGKILL
    assert own.pid == os.getpid()
