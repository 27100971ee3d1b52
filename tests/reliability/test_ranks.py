"""One of two processes hangs or dies, and nobody looks after them; `make ranks` does it at forty instants."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from ranks import PATIENT, STILL, Forks, Pair, prepared, verdict

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a launcher has to end what hangs"),
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("ranks")
    prepared(folder)
    with Forks(folder) as forks:
        both = Pair(forks, folder)
        codes = [command.wait() for command in both.start("straight", PATIENT)]
        assert codes == [0, 0]
        yield both


@pytest.mark.parametrize(
    ("number", "rank"),
    [(signal.SIGSTOP, 0), (signal.SIGSTOP, 1), (signal.SIGKILL, 0), (signal.SIGKILL, 1)],
)
def test_what_happens_to_one_process_ends_the_run_of_both(pair: Pair, number: signal.Signals, rank: int) -> None:
    """LF-RUN-070 if it hangs, LF-RUN-071 if it dies; `verdict` looks for them, for exit codes and seconds."""
    name = f"{number.name}-{rank}"
    struck = pair.strike(name, rank, number, "step=4/12")
    assert struck.codes[1 - rank] == 75, struck.said
    assert verdict(struck, rank, number) == ""
    code, said = pair.finish(name)
    assert code == 0, said
    assert pair.result(name) == pair.result("straight")


def test_a_process_that_stands_still_in_its_disk_ends_the_run_of_both(pair: Pair) -> None:
    """LF-RUN-110: its heartbeat goes on, and says that nothing else does."""
    struck = pair.block("blocked")
    assert struck.codes == (-signal.SIGKILL, 75), struck.said
    assert struck.seconds < STILL + 5
    assert struck.said.count("process 0 of 2") == 1
    assert "has stood still in a step for " in struck.said
    assert "LF-RUN-110" in struck.said
    assert "Traceback" not in struck.said
    code, said = pair.finish("blocked")
    assert code == 0, said
    assert "resumed from checkpoint-3" in said
    assert pair.result("blocked") == pair.result("straight")


def test_a_process_that_comes_late_takes_part_in_the_run_that_the_first_has_begun(pair: Pair) -> None:
    again = ("--set", "training.resume_from_checkpoint=true", *PATIENT)
    both = pair.start("late", again, late=3)
    assert [command.wait() for command in both] == [0, 0], both[1].said()
    assert pair.result("late") == pair.result("straight")
