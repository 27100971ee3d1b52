"""Which hardware profile a strategy gets, and the layers that depend on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from llamafarm.api.components import HardwareProfile
from llamafarm.api.values import DeviceSpec, Probe
from llamafarm.core.canonical import TUNER
from llamafarm.core.layers import Layer, Origin, Path, descend
from llamafarm.core.registry import Registry

_SLOT = ("components", "hardware")


class FailedProbe(Probe):
    """What counts as the answer of a profile that broke: there is no device, because of that."""


def choose_device(
    values: Mapping[str, Any], registry: Registry, instead: DeviceSpec | None = None
) -> tuple[str, dict[str, Probe]]:
    """The profile to use, and what each profile that was asked answered; of a device `instead`, its own.

    As given; for `auto` (or nothing) the one of the highest priority whose device is there, else the lowest.
    """
    if instead is not None:
        return instead.type, {instead.type: Probe(instead, f"{instead.name}, as asked")}
    asked = descend(values, (*_SLOT, "type"))
    profiles = registry.family("hardware")
    if asked not in (None, "auto"):
        return str(asked), {asked: profile(values, registry, asked).probe()} if asked in profiles else {}
    probes: dict[str, Probe] = {}
    for name in sorted(profiles, key=lambda name: -_class(registry, name).priority):
        probes[name] = _probed(values, registry, name)
        if probes[name].device is not None:
            return name, probes
    return next(reversed(probes), "cpu"), probes


def _probed(values: Mapping[str, Any], registry: Registry, name: str) -> Probe:
    """What a profile answers that nobody asked for: one that breaks has no device, and says so."""
    try:
        return profile(values, registry, name).probe()
    except Exception as error:  # noqa: BLE001  # a plugin's code may raise anything
        plugin = registry.family("hardware")[name].plugin
        return FailedProbe(None, f"left out, {plugin} failed: {type(error).__name__}: {error}")


def profile(values: Mapping[str, Any], registry: Registry, name: str) -> HardwareProfile[Any]:
    """A profile with the strategy's options for it; wrong ones are left to validation, which names their place."""
    component = _class(registry, name)
    given = descend(values, (*_SLOT, "config")) if descend(values, (*_SLOT, "type")) == name else None
    try:
        return component(component.Config.model_validate(given or {}))
    except ValidationError:
        return component(component.Config())


def _class(registry: Registry, name: str) -> type[HardwareProfile[Any]]:
    component = registry.family("hardware")[name].component
    assert issubclass(component, HardwareProfile)
    return component


def suggestions(values: Mapping[str, Any], registry: Registry, name: str, probe: Probe | None) -> Layer:
    """What the profile suggests for its device, weaker than anything written."""
    layer = Layer()
    if probe is not None and probe.device is not None:
        for suggestion in profile(values, registry, name).suggest(probe.device):
            origin = Origin("hardware", f"hardware profile {name}", reason=suggestion.reason)
            layer.put((*TUNER, *suggestion.path.split(".")), suggestion.value, origin)
    return layer


def device_block(written: Layer, name: str) -> Layer:
    """The `optimization.<device>` block as a layer of its own, just above the strategy, whoever wrote its values."""
    prefix: Path = ("optimization", name)
    layer = Layer()
    for path in [path for path in written.origins if path[:2] == prefix and len(path) > 2]:
        value = descend(written.values, path)
        if not isinstance(value, dict) and value is not None:
            origin = written.origins[path]
            from_outside = origin.kind in ("environment", "flag", "set")
            placed = origin if from_outside else Origin("device", origin.place, origin.key_place, preset=origin.preset)
            layer.put((*TUNER, *path[2:]), value, placed)
    return layer
