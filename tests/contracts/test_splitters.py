from __future__ import annotations

from llamafarm.testing.contracts import SplitterContract
from llamafarm_splitters.group import Group
from llamafarm_splitters.hash import Hash
from llamafarm_splitters.random import Random
from llamafarm_splitters.sequential import Sequential
from llamafarm_splitters.stratified import Stratified


class TestHash(SplitterContract):
    component = Hash


class TestRandom(SplitterContract):
    component = Random


class TestStratified(SplitterContract):
    component = Stratified
    config = {"by": "instruction"}


class TestGroup(SplitterContract):
    component = Group
    config = {"by": "instruction"}


class TestSequential(SplitterContract):
    component = Sequential
