from __future__ import annotations

from llamafarm.testing.contracts import SplitterContract
from llamafarm_splitters.hash import Hash
from llamafarm_splitters.random import Random


class TestHash(SplitterContract):
    component = Hash


class TestRandom(SplitterContract):
    component = Random
