"""Every documented configuration loads: whole strategies as strategies, the others as fragments."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafarm.core.fragments import check_fragment, is_fragment
from llamafarm.core.load import load
from llamafarm.core.registry import load_registry
from llamafarm.core.request import Request
from llamafarm.core.yaml_source import read_yaml

DOCUMENTS = Path(__file__).parents[1] / "documents"
FRAGMENTS = {
    "bos-factor": ("method.bos-scaling.bos_scaling_factor",),
    "bos-max-samples": ("dataset.max_samples",),
    "lora": ("method",),
    "qlora": ("method",),
    "training": ("training",),
    "cuda": ("optimization",),
    "mps": ("optimization",),
    "cpu": ("optimization",),
    "evaluation": ("training",),
}
STRATEGIES = ("model", "minimal-memory", "maximum-performance", "llamafactory")


@pytest.fixture(scope="module")
def registry():
    return load_registry(())


@pytest.mark.parametrize("name", FRAGMENTS)
def test_fragments(registry, name):
    path = DOCUMENTS / f"{name}.yaml"
    assert is_fragment(read_yaml(path).values)
    assert check_fragment(path, registry).keys == FRAGMENTS[name]


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies(registry, name):
    loaded = load(Request(str(DOCUMENTS / f"{name}.yaml")), registry)
    assert loaded.strategy.components.fine_tuner.type == ("llamafactory" if name == "llamafactory" else "pytorch")


def test_the_values_of_the_training_block_arrive(registry, tmp_path):
    body = (DOCUMENTS / "training.yaml").read_text(encoding="utf-8")
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    (tmp_path / "s.yaml").write_text(f"fine_tuner:\n  config:\n{indented}", encoding="utf-8")
    training = load(Request(str(tmp_path / "s.yaml")), registry).tuner_config.training
    assert (training.learning_rate, training.adam_epsilon) == (2e-4, 1e-8)
    assert training.optim == "adamw_8bit"
    assert (training.batch_size, training.gradient_accumulation_steps) == (4, 4)
    assert (training.num_epochs, training.max_steps, training.warmup_ratio, training.warmup_steps) == (3, -1, 0.1, 0)
    assert (training.seed, training.data_seed) == (42, None)
    assert training.report_to == ("tensorboard",)


def test_no_document_is_left_out():
    known = {*FRAGMENTS, *STRATEGIES}
    assert {path.stem for path in DOCUMENTS.glob("*.yaml")} == known
