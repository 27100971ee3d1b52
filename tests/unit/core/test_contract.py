from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from llamafarm.api import BaseModelConfig, DatasetConfig, EvaluationConfig, FineTunerConfig, TrainingConfig
from llamafarm.core.contract import CONTRACT, Change, class_of, compare
from llamafarm.core.registry import load_registry
from llamafarm.core.schema import Strategy

BLOCKS: dict[str, type[BaseModel]] = {
    "": FineTunerConfig,
    "base_model.": BaseModelConfig,
    "dataset.": DatasetConfig,
    "training.": TrainingConfig,
    "evaluation.": EvaluationConfig,
}


def fields() -> Iterator[str]:
    for prefix, block in BLOCKS.items():
        for name in block.model_fields:
            if f"{name}." not in BLOCKS:
                yield f"{prefix}{name}"


@pytest.mark.parametrize("key", list(fields()))
def test_every_setting_has_a_class_of_its_own(key):
    assert key in CONTRACT, f"say in core/contract.py whether {key} may change when a run is resumed"


def test_every_top_level_key_of_a_strategy_has_a_class():
    named = {key.partition(".")[0] for key in CONTRACT}
    assert set(Strategy.model_fields) - named == set()


def test_the_table_names_nothing_that_is_not_there():
    known = {*fields(), *Strategy.model_fields, "components.hardware", "components.data_splitter"}
    assert set(CONTRACT) - known - {"components.fine_tuner.type"} == set()


def test_every_option_of_every_method_is_fixed():
    for registered in load_registry().family("method").values():
        for name in registered.component.Config.model_fields:
            assert class_of(f"method.0.{name}") is Change.NEVER


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("training.logging_steps", Change.FREE),
        ("dataset.mask_audit.enabled", Change.FREE),
        ("training.learning_rate", Change.FLAG),
        ("training.curriculum.by", Change.NEVER),
        ("dataset.sources.0.weight", Change.NEVER),
        ("components.data_splitter.config.seed", Change.NEVER),
        ("something.new", Change.NEVER),
    ],
)
def test_a_block_speaks_for_what_is_in_it(key, expected):
    assert class_of(key) is expected


def test_differences_name_both_values():
    found = compare({"training.seed": 1, "output_dir": "a", "gone": 2}, {"training.seed": 2, "output_dir": "b"})
    assert [(str(item), item.change) for item in found] == [
        ("training.seed was 1 and is 2", Change.NEVER),
        ("output_dir was 'a' and is 'b'", Change.FREE),
        ("gone was 2 and is None", Change.NEVER),
    ]
