"""A hardware profile of somebody else: found, chosen, asked, named in `optimization`, and trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from pydantic import Field

from llamafarm.api import Config, DeviceSpec, HardwareProfile, Probe, Suggestion
from llamafarm.core.distributions import Plugin
from llamafarm.core.load import load
from llamafarm.core.plan import make_plan
from llamafarm.core.registry import Registered, Registry, load_registry
from llamafarm.core.request import Request
from llamafarm.core.run import train
from llamafarm.errors import StrategyError
from llamafarm.testing.contracts import HardwareContract


class NpuConfig(Config):
    here: bool = Field(True, description="Whether this machine has one.")


class Npu(HardwareProfile[NpuConfig]):
    """An accelerator that torch, in this test, reaches by the name of the CPU."""

    name = "npu"
    priority = 90

    def probe(self) -> Probe:
        if not self.config.here:
            return Probe(None, "no NPU is plugged in")
        return Probe(DeviceSpec("cpu", "NPU 9000", 1, 2**34, {"bf16": False}), "one NPU")

    def suggest(self, device: DeviceSpec) -> Sequence[Suggestion]:
        return [Suggestion("training.batch_size", 2, f"{device.name} is at its best with two rows")]


class TestNpu(HardwareContract):
    component = Npu

    def test_is_registered_by_an_installed_plugin(self) -> None:
        """It belongs to no installed distribution: `registry` below stands in for one."""


@pytest.fixture
def registry() -> Registry:
    installed = load_registry(())
    plugin = Plugin("npu", "llamafarm-npu", "1.0")
    hardware = {**installed.components["hardware"], "npu": Registered(Npu, plugin)}
    return replace(installed, components={**installed.components, "hardware": hardware})


def strategy(tmp_path, tiny_dataset, tiny_model_dir, more: str = "") -> str:
    path = tmp_path / "s.yaml"
    path.write_text(
        f"fine_tuner:\n  config:\n    base_model: {tiny_model_dir('llama')}\n    dataset: {tiny_dataset}\n"
        f"    output_dir: {tmp_path / 'out'}\n    training: {{max_steps: 2}}\n{more}",
        encoding="utf-8",
    )
    return str(path)


def test_auto_takes_it_and_trains_with_what_it_suggests(registry, tmp_path, tiny_dataset, tiny_model_dir):
    loaded = load(Request(strategy(tmp_path, tiny_dataset, tiny_model_dir)), registry)
    assert loaded.device_type == "npu"
    planned = make_plan(loaded, registry)
    told = {item.subject: item for item in planned.plan.decisions}
    assert told["training.batch_size"].value == "2"
    assert told["training.batch_size"].reason == "NPU 9000 is at its best with two rows"
    events = []
    train(loaded, planned, registry, events.append)
    assert [event.fields["step"] for event in events if event.type == "log"] == [1, 2]


def test_its_block_holds_on_it_alone_and_its_formats_are_believed(registry, tmp_path, tiny_dataset, tiny_model_dir):
    text = strategy(tmp_path, tiny_dataset, tiny_model_dir, "optimization: {npu: {batch_size: 5, bf16: true}}\n")
    loaded = load(Request(text), registry)
    assert loaded.tuner_config.training.batch_size == 5
    planned = make_plan(loaded, registry)
    assert planned.plan.decisions[-1].reason == "NPU 9000 does not compute in bfloat16"
    elsewhere = load(Request(text, sets=("hardware=cpu",)), registry).tuner_config.training
    assert (elsewhere.batch_size, elsewhere.bf16) == (4, False)
    away = load(Request(text, sets=("hardware=npu", "hardware.config.here=false")), registry)
    assert away.device is None
    assert away.probes["npu"].reason == "no NPU is plugged in"


def test_without_it_its_block_is_an_unknown_device(tmp_path, tiny_dataset, tiny_model_dir):
    text = strategy(tmp_path, tiny_dataset, tiny_model_dir, "optimization: {npu: {batch_size: 5}}\n")
    with pytest.raises(StrategyError, match="unknown key 'npu'"):
        load(Request(text), load_registry(()))
