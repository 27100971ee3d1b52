"""Registers the components of this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llamafarm.api import DataSplitter, hookimpl


@hookimpl
def llamafarm_data_splitters() -> Sequence[type[DataSplitter[Any]]]:
    """The splitters of this package."""
    from llamafarm_splitters.group import Group
    from llamafarm_splitters.hash import Hash
    from llamafarm_splitters.random import Random
    from llamafarm_splitters.sequential import Sequential
    from llamafarm_splitters.stratified import Stratified

    return [Hash, Random, Stratified, Group, Sequential]
