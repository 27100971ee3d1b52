"""What this plugin brings. LlamaFarm imports this module when it starts, so it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamafarm.api import DataSplitter, FineTuner, Method, hookimpl
from llamafarm_example.bias_only import BiasOnly
from llamafarm_example.every_nth import EveryNth
from llamafarm_example.ngram import NGram


@hookimpl
def llamafarm_methods() -> Sequence[type[Method[Any]]]:
    return [BiasOnly]


@hookimpl
def llamafarm_data_splitters() -> Sequence[type[DataSplitter[Any]]]:
    return [EveryNth]


@hookimpl
def llamafarm_fine_tuners() -> Sequence[type[FineTuner[Any]]]:
    return [NGram]


@hookimpl
def llamafarm_strategies() -> Sequence[Path]:
    return [Path(__file__).parent / "strategies"]
