"""Anything at all may come through the front doors: only our own errors come out, and soon."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from targets import SEEDS, TARGETS, attempt

EXAMPLES = 500
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


@pytest.mark.parametrize("name", TARGETS)
def test_only_our_own_errors(name: str) -> None:
    @settings(
        max_examples=EXAMPLES, deadline=5000, derandomize=True, suppress_health_check=list(HealthCheck), database=None
    )
    @given(mutated(SEEDS[name]))
    def run(data: bytes) -> None:
        attempt(name, data)

    run()
