"""What holds for every fine-tuner."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from llamafarm.api import FineTuner, FineTunerConfig
from llamafarm.testing.contracts.component import ComponentContract

if TYPE_CHECKING:
    from llamafarm.testing.plugin import Finished, RunStrategy

_MEASURED = re.compile(r"runtime|seconds|_s$|per_second|memory|bytes")


class FineTunerContract(ComponentContract):
    """Inherit and set `component`.

    Attributes:
        short_run: What a strategy of a short run says in the fine-tuner's `config` (`method`, `training` …).
        architecture: The tiny model (a name of the `tiny_model_dir` fixture) to train.
        trains: False for a fine-tuner that checks strategies and refuses to run them here.
    """

    component: ClassVar[type[FineTuner[Any]]]
    short_run: ClassVar[Mapping[str, Any]] = {}
    architecture: ClassVar[str] = "llama"
    trains: ClassVar[bool] = True

    def strategy(self, model: Path, dataset: Path) -> Mapping[str, Any]:
        """The `fine_tuner:` block of a short run on a tiny model and dataset."""
        given = {"base_model": str(model), "dataset": str(dataset), **self.short_run}
        return {"type": self.component.name, "config": given}

    def train(self, tiny_model_dir: Callable[[str], Path], dataset: Path, run_strategy: RunStrategy) -> Finished:
        """A short run."""
        if not self.trains:
            pytest.skip("checks strategies only")
        return run_strategy(self.strategy(tiny_model_dir(self.architecture), dataset))

    def test_configuration_holds_what_all_fine_tuners_have(self) -> None:
        assert issubclass(self.component.Config, FineTunerConfig)

    def test_leaves_a_result(
        self, tiny_model_dir: Callable[[str], Path], tiny_dataset: Path, run_strategy: RunStrategy
    ) -> None:
        finished = self.train(tiny_model_dir, tiny_dataset, run_strategy)
        result = finished.result
        assert result.metrics, "a result without figures"
        assert [name for name, value in result.metrics.items() if isinstance(value, float) and not _good(value)] == []
        assert result.model_dir.is_relative_to(finished.output_dir)
        assert any(result.model_dir.iterdir()), "nothing was saved"
        assert 0 <= result.trainable_parameters <= result.total_parameters

    def test_same_seed_same_figures(
        self, tiny_model_dir: Callable[[str], Path], tiny_dataset: Path, run_strategy: RunStrategy
    ) -> None:
        first, second = (self.train(tiny_model_dir, tiny_dataset, run_strategy).result for _ in range(2))
        assert _figures(first.metrics) == _figures(second.metrics)

    def test_writes_into_the_output_folder_alone(
        self,
        tiny_model_dir: Callable[[str], Path],
        tiny_dataset: Path,
        run_strategy: RunStrategy,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        data = tiny_dataset.read_bytes()
        self.train(tiny_model_dir, tiny_dataset, run_strategy)
        assert list(elsewhere.iterdir()) == []
        assert tiny_dataset.read_bytes() == data


def _good(value: float) -> bool:
    return math.isfinite(value)


def _figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What training computed, without what a clock or a memory counter measured."""
    return {name: value for name, value in metrics.items() if not _MEASURED.search(name)}
