from __future__ import annotations

from llamafarm_splitters.hash import Hash
from llamafarm_splitters.random import Random

from llamafarm.testing.contracts import SplitterContract


class TestHash(SplitterContract):
    component = Hash


class TestRandom(SplitterContract):
    component = Random
