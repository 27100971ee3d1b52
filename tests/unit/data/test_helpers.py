"""Files read in parts by processes of their own: nothing that is said of them depends on who read what."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llamafarm.data import blocks, helpers
from llamafarm.data.judge import judge
from llamafarm.data.lines import part, ranges
from llamafarm.data.problems import ProblemLog
from llamafarm.data.split import split_files
from llamafarm.errors import DataError
from llamafarm_splitters.random import Random, RandomConfig

ROW = b'{"text": "a row", "n": 1}'
lines = st.one_of(
    st.just(ROW),
    st.integers(0, 9).map(lambda number: b'{"b": %d, "a": 1}' % number),
    st.sampled_from([b"", b"  ", b"x", b"[1]", b'{"a":1,"a":2}', b'{"a":"\\u0022"}', b"\xff", b"\xef\xbb\xbf{}"]),
)
ends = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r", b""])
contents = st.lists(st.tuples(lines, ends).map(b"".join), max_size=30).map(b"".join)


def found(path: Path, *, alone: bool) -> tuple[bytes, list[str]]:
    """The digests of a file, or what is wrong with it: then nobody uses digests."""
    log = ProblemLog()
    with path.open("rb") as stream:
        read = blocks.read_blocks if alone else blocks.read_digests
        digests = b"".join(block.digests for block in read(path, stream, log))
    try:
        log.check()
    except DataError as error:
        return b"", [str(problem) for problem in error.problems]
    return digests, []


def large(patch: pytest.MonkeyPatch, bytes_of_a_part: int) -> None:
    """Let every file be worth two helpers."""
    patch.setattr(blocks, "LARGE", 0)
    patch.setattr(blocks, "PART", bytes_of_a_part)
    patch.setattr(blocks, "helpers_for", lambda _: 2)


@given(content=contents, step=st.integers(1, 60), size=st.integers(4, 40))
@example(content=(ROW + b"\n") * 3 + b"{\n" + b"x\n" * 3, step=20, size=10)  # an object over lines: nothing after it
@example(content=b"\xef\xbb\xbf" + ROW + b"\n\xef\xbb\xbf" + ROW, step=5, size=10)  # a mark in the midst is none
@example(content=b"\xff\xfe{\x00\n", step=1, size=4)  # UTF-16
@example(content=ROW + b"\r" + ROW + b"\r\n" + ROW, step=27, size=27)
def test_a_file_in_parts_is_the_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, step: int, size: int
) -> None:
    path = tmp_path_factory.mktemp("parts") / "rows.jsonl"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        large(patch, step)
        patch.setattr("llamafarm.data.judge.BLOCK", size)
        patch.setattr(blocks, "judged", lambda path, parts, _: (judge(path, *bounds) for bounds in parts))
        assert found(path, alone=False) == found(path, alone=True)


@given(content=contents, step=st.integers(1, 60))
def test_parts_are_the_whole_and_end_with_lines(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, step: int
) -> None:
    path = tmp_path_factory.mktemp("parts") / "rows.jsonl"
    path.write_bytes(content)
    with path.open("rb") as stream:
        parts = [part(stream, *bounds)(len(content)) for bounds in list(ranges(stream, len(content), step))]
    assert b"".join(parts) == content
    assert all(piece.endswith(b"\n") and len(piece) >= step for piece in parts[:-1])


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(b'{"text": "row %d", "long": "%s"}\n' % (n, b"x" * (n % 90)) for n in range(5000)))
    return path


def test_helpers_split_as_one_process_does(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def split(name: str, **more: Any) -> tuple[Any, ...]:
        outputs = [tmp_path / f"{name}{number}.jsonl" for number in range(3 if more else 2)]
        report = split_files([rows], Random(RandomConfig()), outputs, **more)
        return report.digest, report.counts, [output.read_bytes() for output in outputs]

    third = {"extra": lambda _: Random(RandomConfig(eval_rows=400))}
    alone = split("alone"), split("three", **third)
    large(monkeypatch, 1 << 14)
    monkeypatch.setattr(blocks, "_parsed", lambda *_: pytest.fail("a helper did not do its part"))
    assert (split("helped"), split("helped-three", **third)) == alone


def test_what_helpers_refuse_is_said_with_its_line(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = rows.read_bytes().splitlines()
    content[1234], content[4321] = b'{"a": NaN}', b"\xff"
    rows.write_bytes(b"\n".join(content))
    alone = found(rows, alone=True)
    large(monkeypatch, 1 << 14)
    _, problems = found(rows, alone=False)
    assert [problem.partition(": ")[0] for problem in problems] == [f"{rows}:1235", f"{rows}:4322:1"]
    assert problems == alone[1]


@pytest.mark.parametrize("code", ["", "raise SystemExit(1)", "import os; os.write(1, b'no answer'); os.read(0, 9)"])
def test_what_a_helper_leaves_undone_is_done(code: str, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = found(rows, alone=True)
    large(monkeypatch, 1 << 16)
    monkeypatch.setattr(helpers, "_CODE", code)
    assert found(rows, alone=False) == alone


def test_without_any_helper_all_is_done(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    alone = found(rows, alone=True)
    large(monkeypatch, 1 << 16)
    monkeypatch.setattr(helpers, "_started", refused)
    assert found(rows, alone=False) == alone


def test_helpers_end_with_the_work(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, start = list[subprocess.Popen[bytes]](), helpers._started

    def remembered() -> subprocess.Popen[bytes]:
        started.append(start())
        return started[-1]

    monkeypatch.setattr(helpers, "_started", remembered)
    with closing(helpers.judged(rows, [(0, rows.stat().st_size)] * 50, 2)) as answers:
        assert next(answers) is not None
        assert [helper.poll() for helper in started] == [None, None]
    assert all(helper.returncode is not None for helper in started)


ASKING = """
import sys, pathlib
from llamafarm.data import helpers
path, started, start = pathlib.Path(sys.argv[1]), [], helpers._started
def remembered():
    started.append(start())
    print(started[-1].pid, flush=True)
    return started[-1]
helpers._started = remembered
for _ in helpers.judged(path, [(0, path.stat().st_size)] * 100_000, 2):
    print("answered", flush=True)
"""


@pytest.fixture
def asking(rows: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process whose helpers are at work, and their ids."""
    process = subprocess.Popen(
        [sys.executable, "-c", ASKING, str(rows)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    ids = [int(process.stdout.readline()) for _ in range(2)]
    assert process.stdout.readline() == "answered\n"
    yield process, ids
    process.kill()
    process.communicate()


def gone(process: int) -> bool:
    """Whether it ended, be it that nobody asked how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until_gone(ids: list[int]) -> bool:
    until = time.monotonic() + 20
    while not all(map(gone, ids)) and time.monotonic() < until:
        time.sleep(0.02)
    return all(map(gone, ids))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux what became of a process")
def test_helpers_end_when_who_asked_is_killed(asking: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, ids = asking
    process.kill()
    assert wait_until_gone(ids)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux what became of a process")
def test_an_interrupt_ends_all_of_them(asking: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, ids = asking
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert error.rstrip().endswith("KeyboardInterrupt")
    assert error.count("Traceback") == 1, error  # that of who asked; helpers say nothing
    assert wait_until_gone(ids)


def test_small_files_need_no_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helpers.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert [helpers.helpers_for(parts) for parts in (0, 1, 2, 3, 100)] == [0, 0, 2, 3, helpers.MOST]
    monkeypatch.setattr(helpers.os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert helpers.helpers_for(100) == 0
