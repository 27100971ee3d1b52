"""pytest fixtures for plugin authors; loaded by pytest through the `pytest11` entry point.

pytest imports this module in every run on a machine where LlamaFarm is installed, so it imports pytest alone;
everything else is imported by the fixture that needs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from llamafarm.api import Event, TrainingResult

pytest.register_assert_rewrite("llamafarm.testing.contracts", "llamafarm.testing.fresh")


@dataclass(frozen=True)
class Finished:
    """A run that ended: its result, the events it emitted, and where it wrote."""

    result: TrainingResult
    events: tuple[Event, ...]
    output_dir: Path


class RunStrategy(Protocol):
    """Run the strategy with this `fine_tuner:` block, as `llamafarm train` would with `--set` for each of `sets`."""

    def __call__(self, fine_tuner: Mapping[str, Any], *sets: str, **components: Any) -> Finished: ...


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function: architecture (`llama`, `qwen2`, `gpt_neox` …) → folder of a tiny model with its tokenizer."""
    from llamafarm.testing import _tiny

    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = _tiny.build_model(architecture, tmp_path_factory.mktemp(architecture))
        return made[architecture]

    return make


@pytest.fixture
def tiny_dataset(tmp_path: Path) -> Path:
    """A file with 60 short instructions and their answers."""
    from llamafarm.testing.rows import make_fields

    path = tmp_path / "tiny.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_fields(60)), encoding="utf-8")
    return path


@pytest.fixture
def run_strategy(tmp_path: Path) -> RunStrategy:
    """A function that trains a strategy and returns what came of it."""
    from llamafarm.testing.running import run

    count = 0

    def call(fine_tuner: Mapping[str, Any], *sets: str, **components: Any) -> Finished:
        nonlocal count
        count += 1
        folder = tmp_path / f"run-{count}"
        folder.mkdir()
        outcome, events = run(folder, {"fine_tuner": fine_tuner, **components}, sets)
        return Finished(outcome.result, tuple(events), outcome.output_dir)

    return call
