"""The contract suites that LlamaFarm's own components pass, and what is particular to these."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from llamafarm.errors import ModelError
from llamafarm.testing.contracts import FineTunerContract, MethodContract, SplitterContract
from llamafarm.testing.plugin import RunStrategy
from llamafarm.testing.run_context import RecordingRun
from llamafarm_example.bias_only import BiasOnly, BiasOnlyConfig
from llamafarm_example.every_nth import EveryNth
from llamafarm_example.ngram import Counts, NGram


class TestEveryNth(SplitterContract):
    component = EveryNth

    def test_holds_out_each_nth(self) -> None:
        assert self.build(n=3).held_out(self.make_rows(7)) == [False, False, True, False, False, True, False]


class TestBiasOnly(MethodContract):
    component = BiasOnly

    def test_matrices_stay_as_they_are(self, tiny_model_dir: Callable[[str], Path], tmp_path: Path) -> None:
        model = self.apply(self.load(tiny_model_dir("gpt_neox")), tmp_path)
        assert {parameter.ndim for parameter in model.parameters() if parameter.requires_grad} == {1}

    def test_says_when_there_is_nothing_to_train(self, tiny_model_dir: Callable[[str], Path], tmp_path: Path) -> None:
        model = self.load(tiny_model_dir("llama"))  # norms, but no biases
        with pytest.raises(ModelError, match="set norms: true"):
            BiasOnly(BiasOnlyConfig(norms=False)).apply(model, RecordingRun(tmp_path))


class TestNGram(FineTunerContract):
    component = NGram

    def test_is_better_than_guessing(
        self, tiny_model_dir: Callable[[str], Path], tiny_dataset: Path, run_strategy: RunStrategy
    ) -> None:
        strategy = self.strategy(tiny_model_dir("llama"), tiny_dataset)
        metrics = run_strategy(strategy, data_splitter="every-nth").result.metrics
        vocabulary = 355
        assert metrics["eval_loss"] == pytest.approx(math.log(metrics["eval_perplexity"]))
        assert metrics["train_loss"] < metrics["eval_loss"] < math.log(vocabulary)


@pytest.mark.parametrize("context", [[], [1], [1, 2], [3, 3], [0, 1]])
def test_probabilities_sum_to_one(context: list[int]) -> None:
    counts = Counts(order=3, discount=0.75, vocabulary=5)
    seen = [0, 1, 2, 3, 1, 2, 4]
    for position in range(len(seen)):
        counts.add(seen, position)
    total = sum(counts.probability([*context, token], len(context)) for token in range(5))
    assert math.isclose(total, 1.0)
