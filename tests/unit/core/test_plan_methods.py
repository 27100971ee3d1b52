"""A fine-tuner that takes no method, and a machine without profiles."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_test_components import Cpu, Lora, Pytorch, registry

from llamafarm.api import FineTuner, FineTunerConfig, TrainingResult
from llamafarm.core.load import load
from llamafarm.core.plan import make_plan
from llamafarm.core.request import Request
from llamafarm.errors import LlamaFarmError

STRATEGY = """\
fine_tuner:
  type: counting
  config: {base_model: {from_scratch: {architecture: {}}}, dataset: {generate: smart-home}}
"""


class Scaling(Lora):
    name = "scaling"
    stacks = True


class Counting(FineTuner[FineTunerConfig]):
    name = "counting"

    def fit(self, plan, data, run):
        return TrainingResult({}, plan.output_dir)


def test_a_fine_tuner_may_take_no_method(write):
    installed = registry(Lora, Pytorch, Counting, Cpu)
    loaded = load(Request(write(STRATEGY)), installed)
    assert loaded.tuner_config.method == ()
    assert make_plan(loaded, installed).plan.methods == ()


def test_it_refuses_one_that_is_given(write):
    installed = registry(Lora, Pytorch, Counting, Cpu)
    with pytest.raises(LlamaFarmError) as caught:
        make_plan(load(Request(write(STRATEGY), sets=("method=lora",)), installed), installed)
    (problem,) = caught.value.problems
    assert problem.id == "LF-STRATEGY-034"
    assert problem.hint == "it takes no method"


def test_without_any_hardware_profile_there_is_no_device(write):
    installed = registry(Lora, Pytorch, Counting)
    installed = replace(installed, components={**installed.components, "hardware": {}})
    with pytest.raises(LlamaFarmError, match="no hardware profile is installed") as caught:
        make_plan(load(Request(write(STRATEGY)), installed), installed)
    assert caught.value.problems[0].id == "LF-HARDWARE-001"


def test_a_method_that_only_modifies_needs_one_that_trains(write):
    installed = registry(Lora, Scaling, Pytorch, Cpu)
    text = STRATEGY.replace("counting", "pytorch")
    with pytest.raises(LlamaFarmError, match=r"'scaling' trains nothing by itself.*LF-STRATEGY-033"):
        make_plan(load(Request(write(text), sets=("method=scaling",)), installed), installed)
    stacked = load(Request(write(text), sets=("method=[lora, scaling]",)), installed)
    assert [method.name for method in make_plan(stacked, installed).plan.methods] == ["lora", "scaling"]


def test_a_checkout_without_an_installation_says_so(write):
    installed = registry(Lora, plugins=(), components={})
    with pytest.raises(LlamaFarmError, match=r"not even our own; run: pip install -e \. .LF-PLUGIN-004"):
        load(Request(write(STRATEGY)), installed)
