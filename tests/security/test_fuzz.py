"""Anything at all may come through the front doors: only our own errors come out, soon, and for little memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamafarm.errors import SecurityError

sys.path.insert(0, str(Path(__file__).parent))
from targets import SEEDS, TARGETS, attempt

EXAMPLES = 500
SECONDS, BYTES = 2.0, 512 << 20
"""What one input may cost: time of the processor, and memory beyond what the process has."""

WORDS = rb"""{ } " [ ] : , \ud800 -0 NaN 1e999 null ${ &a *a {% {{ %} }} << - !! ../ ' # |"""
PIECES = st.sampled_from([*WORDS.split(), b"\n", b"\0", b"\xff", b"\xed\xa0\x80", b"9" * 400])


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with pieces cut out and put in, or no seed at all."""
    data = draw(st.sampled_from([*seeds, b""]))
    for _ in range(draw(st.integers(0, 5))):
        at, end = sorted(draw(st.tuples(st.integers(0, len(data)), st.integers(0, len(data)))))
        data = data[:at] + draw(st.one_of(PIECES, st.binary(max_size=6))) + data[min(end, at + 3) :]
    return data


@contextmanager
def little_memory() -> Iterator[None]:
    """Whoever asks for more gets a MemoryError."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, most))


def cheaply(name: str, data: bytes) -> None:
    """Run a target; what costs too much fails."""
    begun = time.process_time()  # another clock would see what else the machine does
    with little_memory():
        attempt(name, data)
    took = time.process_time() - begun
    assert took <= SECONDS, f"{took:.1f} s for {len(data)} bytes"


# the end of a template's time, or of its memory, may come while Python is in a callback that lets no error out
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", TARGETS)
def test_only_our_own_errors(name: str) -> None:
    attempt(name, SEEDS[name][0])  # what is loaded once counts for no input

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
    )
    @given(mutated(SEEDS[name]))
    def run(data: bytes) -> None:
        cheaply(name, data)

    run()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited on Linux alone")
def test_a_template_without_memory_is_told() -> None:
    attempt("template", SEEDS["template"][0])
    with little_memory(), pytest.raises(SecurityError, match=r"needs more memory than there is .*LF-SECURITY-009"):
        TARGETS["template"](b"{{ messages[0].content * 2000000000 }}")


def test_what_costs_too_much_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(data: bytes) -> None:
        end = time.process_time() + SECONDS + 0.1
        while time.process_time() < end:
            pass

    monkeypatch.setitem(TARGETS, "slow", slow)
    monkeypatch.setitem(TARGETS, "large", lambda data: bytes(2 * BYTES))
    with pytest.raises(AssertionError, match=r"2\.\d s for 3 bytes"):
        cheaply("slow", b"abc")
    if sys.platform.startswith("linux"):
        with pytest.raises(MemoryError):
            cheaply("large", b"abc")
