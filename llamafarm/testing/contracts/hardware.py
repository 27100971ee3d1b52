"""What holds for every hardware profile."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from llamafarm.api import DeviceSpec, FineTunerConfig, HardwareProfile
from llamafarm.testing.contracts.component import ComponentContract


class HardwareContract(ComponentContract):
    """Inherit and set `component`.

    Attributes:
        devices: Devices to ask suggestions for besides the one found here, so that a profile is also tested on machines
            without its device.
    """

    component: ClassVar[type[HardwareProfile[Any]]]
    devices: ClassVar[Sequence[DeviceSpec]] = ()
    light_use = "probe"

    def test_finds_a_device_or_says_why_not(self) -> None:
        probe = self.build().probe()
        assert probe.reason.strip(), "a probe gives its reason either way"
        if probe.device is not None:
            _check_device(probe.device)

    def test_finds_the_same_again(self) -> None:
        first, second = self.build().probe(), self.build().probe()
        assert (first.device is None) == (second.device is None)
        if first.device and second.device:
            assert (first.device.type, first.device.name, first.device.count) == (
                second.device.type,
                second.device.name,
                second.device.count,
            )

    def test_suggests_valid_settings_with_reasons(self) -> None:
        profile = self.build()
        found = profile.probe().device
        devices = [*self.devices, *([found] if found else [])]
        if not devices:
            pytest.skip("no device here and none given in `devices`")
        for device in devices:
            suggestions = profile.suggest(device)
            assert len({suggestion.path for suggestion in suggestions}) == len(suggestions), "one suggestion a setting"
            for suggestion in suggestions:
                assert suggestion.reason.strip(), f"{suggestion.path}: a suggestion gives its reason"
                FineTunerConfig.model_validate(_nested(suggestion.path, suggestion.value))


def _check_device(device: DeviceSpec) -> None:
    assert device.type
    assert device.name
    assert device.count >= 1
    assert device.memory_bytes >= 0
    json.dumps(dict(device.details))


def _nested(path: str, value: Any) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return {first: _nested(rest, value) if rest else value}
