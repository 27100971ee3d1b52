from __future__ import annotations

from llamafarm.testing.contracts import SplitterContract
from llamafarm_splitters.hashed import HashSplitter
from llamafarm_splitters.seeded import RandomSplitter


class TestHash(SplitterContract):
    component = HashSplitter


class TestRandom(SplitterContract):
    component = RandomSplitter
