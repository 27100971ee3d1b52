from __future__ import annotations

import platform

import pytest

from llamafarm.api import NoConfig, Probe
from llamafarm_hardware import mps as mps_module
from llamafarm_hardware.mps import Mps
from llamafarm_hardware.torch_build import TorchBuild


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    monkeypatch.setattr(mps_module, "torch_build", lambda: TorchBuild("2.13.0", "", ""))
    return monkeypatch


def probe() -> Probe:
    return Mps(NoConfig()).probe()


def test_a_mac_is_found(mac: pytest.MonkeyPatch) -> None:
    device = probe().device
    assert device is not None
    assert (device.type, device.count) == ("mps", 1)
    values = {suggestion.path: suggestion.value for suggestion in Mps(NoConfig()).suggest(device)}
    assert values == {
        "base_model.torch_dtype": "float32",
        "base_model.attn_implementation": "sdpa",
        "training.dataloader_pin_memory": False,
    }


@pytest.mark.parametrize(("system", "machine"), [("Linux", "x86_64"), ("Darwin", "x86_64"), ("Linux", "aarch64")])
def test_other_machines_have_none(system: str, machine: str, mac: pytest.MonkeyPatch) -> None:
    mac.setattr(platform, "system", lambda: system)
    mac.setattr(platform, "machine", lambda: machine)
    found = probe()
    assert found.device is None
    assert f"{system} on {machine}" in found.reason


def test_an_old_macos_is_the_reason(mac: pytest.MonkeyPatch) -> None:
    mac.setattr(platform, "mac_ver", lambda: ("12.2", ("", "", ""), "arm64"))
    assert probe() == Probe(None, "macOS 12.2 is too old for torch on MPS: it needs 12.3 or newer")


def test_no_torch_is_the_reason(mac: pytest.MonkeyPatch) -> None:
    mac.setattr(mps_module, "torch_build", lambda: None)
    assert probe() == Probe(None, "torch is not installed")
