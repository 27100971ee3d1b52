"""A request → the composed and validated strategy, with the origin of every value. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llamafarm.api.components import HardwareProfile, Method
from llamafarm.api.config import FineTunerConfig
from llamafarm.api.values import DeviceSpec, Probe
from llamafarm.core.canonical import TUNER, Canonical, canonicalize
from llamafarm.core.compose import merge
from llamafarm.core.layers import Layer, Origin, Path, descend, dotted
from llamafarm.core.registry import Registry
from llamafarm.core.request import Flag, Request
from llamafarm.core.resources import Source, find_fragment, find_strategy
from llamafarm.core.schema import COMPONENT_KEYS, Strategy
from llamafarm.core.validate import validate
from llamafarm.core.yaml_source import Reading, display, parse_scalar, read_yaml
from llamafarm.errors import LlamaFarmError, PluginError, Problem, StrategyError, nearest, one_of

_ENVIRONMENT_PREFIX = "LLAMAFARM_"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A strategy ready to plan.

    Attributes:
        strategy: The validated model.
        values: The merged canonical values as given, without defaults.
        origins: Where each given value comes from.
        notices: What a user should know (repeated keys, empty optional secrets …).
        probes: The answer of each hardware profile that was asked, by type.
        source: The file, or None when flags alone made the strategy.
    """

    strategy: Strategy
    values: Mapping[str, Any]
    origins: Mapping[Path, Origin]
    notices: tuple[str, ...]
    probes: Mapping[str, Probe]
    device_type: str
    source: Source | None = None

    @property
    def tuner_config(self) -> FineTunerConfig:
        """The fine-tuner's configuration."""
        config = self.strategy.components.fine_tuner.config
        assert isinstance(config, FineTunerConfig)
        return config

    @property
    def device(self) -> DeviceSpec | None:
        """The device, if it is there."""
        return self.probes[self.device_type].device if self.device_type in self.probes else None


def load(request: Request, registry: Registry) -> Loaded:
    """Compose and validate.

    Raises:
        StrategyError: With every problem found.
        PluginError: If a component or plugin that was asked for is missing, broken or ambiguous.
    """
    return _Loading(registry).load(request)


@dataclass(slots=True)
class _Loading:
    registry: Registry
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    probes: dict[str, Probe] = field(default_factory=dict)
    stacked: int = 1

    def load(self, request: Request) -> Loaded:
        source = find_strategy(request.strategy, self.registry) if request.strategy is not None else None
        written = self.read(source) if source else Layer()
        layers = [*self.fragments(written), written]
        stack = self.canonical(layers)
        merged = merge(stack)
        self.stacked = len(descend(merged.values, (*TUNER, "method")) or [{}])
        for layer in (self.environment(), self.flags(request.flags), *self.sets(request.sets, merged)):
            stack.append(self.canonicalize(layer, merge(stack)))
        device_type = self.device_type(merge(stack))
        merged = merge(
            [*self.weak(merge(stack), device_type), *self.with_device_block(stack, len(layers), device_type)]
        )
        self.stop_at(self.required_plugins(merged))
        strategy = validate(merged, self.registry, self.problems)
        return Loaded(
            strategy,
            merged.values,
            merged.origins,
            tuple(dict.fromkeys(self.notices)),
            self.probes,
            device_type,
            source,
        )

    # --- layers ---

    def read(self, source: Source) -> Layer:
        reading = read_yaml(source.path, preset=source.preset)
        self.collect(reading)
        return _entry(reading, source)

    def collect(self, found: Reading | Canonical) -> None:
        self.problems.extend(problem for problem in found.problems if problem not in self.problems)
        self.notices.extend(found.notices)

    def canonicalize(self, layer: Layer, base: Layer) -> Canonical:
        canonical = canonicalize(layer, self.registry, base.values)
        self.collect(canonical)
        return canonical

    def canonical(self, layers: list[Layer]) -> list[Layer]:
        stack: list[Layer] = []
        for layer in layers:
            stack.append(self.canonicalize(layer, merge(stack)))
        return stack

    def fragments(self, written: Layer) -> list[Layer]:
        """The fragments that `defaults:` names, each as a layer."""
        defaults = written.values.get("defaults") or {}
        if not isinstance(defaults, dict):
            return []
        layers = []
        for key, name in defaults.items():
            origin = written.origin(("defaults", key))
            where = origin.place if origin else ""
            if key not in FineTunerConfig.model_fields and key not in COMPONENT_KEYS:
                hint = nearest(key, [*FineTunerConfig.model_fields, *COMPONENT_KEYS])
                self.problems.append(Problem("LF-STRATEGY-021", f"unknown key {key!r} in defaults", where, hint))
                continue
            source = find_fragment(key, str(name), where)
            reading = read_yaml(source.path, kind="fragment", preset=source.preset)
            self.collect(reading)
            layers.append(_nested(reading, _target(key)))
        return layers

    def environment(self) -> Layer:
        """`LLAMAFARM_TRAINING__LEARNING_RATE=1e-4` and the like."""
        layer = Layer()
        for name, text in sorted(os.environ.items()):
            if not name.startswith(_ENVIRONMENT_PREFIX) or "__" not in name:
                continue
            path = name.removeprefix(_ENVIRONMENT_PREFIX).lower().replace("__", ".")
            self.put(layer, path, self.parse(text, name), Origin("environment", name, name))
        return layer

    def flags(self, flags: tuple[Flag, ...]) -> Layer:
        layer = Layer()
        for flag in flags:
            self.put(layer, flag.path, flag.value, Origin("flag", flag.spelling, flag.spelling))
        return layer

    def sets(self, texts: tuple[str, ...], merged: Layer) -> list[Layer]:
        """`--set` values: first those that swap a component, then those that set one option."""
        swaps: list[Layer] = []
        leaves: list[Layer] = []
        for text in texts:
            key, equals, value = text.partition("=")
            place = f"--set {key}"
            if not equals or not key.strip():
                problem = Problem("LF-STRATEGY-015", f"--set {text!r} has no '='", "", "write --set training.seed=7")
                self.problems.append(problem)
                continue
            parts = key.strip().split(".")
            if parts[-1] == "type" and len(parts) > 1:
                owner = ".".join(parts[:-1])
                hint = f"write --set {owner}={value}: it also drops the options of the old one"
                self.problems.append(Problem("LF-STRATEGY-016", "a component's type is not set alone", place, hint))
                continue
            layer = Layer()
            swap = parts[-1] in (*COMPONENT_KEYS, "method") and len(parts) <= 4
            self.put(
                layer, self.method_path(key.strip(), merged), self.parse(value, place), Origin("set", place, place)
            )
            (swaps if swap else leaves).append(layer)
        return [*swaps, *leaves]

    def method_path(self, key: str, merged: Layer) -> str:
        """`method.r`, `method.lora.r`, `method.0.r` → a path with an index where there is a stack."""
        parts = key.split(".")
        if parts[0] != "method" or len(parts) < 3:
            return key
        types = [method.get("type") for method in descend(merged.values, (*TUNER, "method")) or []]
        if parts[1] in types:
            parts[1] = str(types.index(parts[1]))
        return ".".join(parts)

    def parse(self, text: str, place: str) -> Any:
        try:
            return parse_scalar(text)
        except LlamaFarmError as error:
            self.problems.append(
                Problem("LF-STRATEGY-017", f"the value {text!r} is {error.problems[0].message}", place)
            )
            return None

    def put(self, layer: Layer, key: str, value: Any, origin: Origin) -> None:
        """Put an override where it belongs; short keys are below the fine-tuner's configuration."""
        path: Path = tuple(key.split("."))
        head = str(path[0])
        if head in Strategy.model_fields or head in COMPONENT_KEYS:
            if head in COMPONENT_KEYS and len(path) > 1 and path[1] not in ("type", "config"):
                path = (head, "config", *path[1:])
            layer.put(path, value, origin)
            return
        if head not in FineTunerConfig.model_fields and head not in FineTunerConfig.aliases:
            tuner_type_fields = self.tuner_fields()
            if head not in tuner_type_fields:
                near = _suggest(key)
                self.problems.append(Problem("LF-STRATEGY-021", f"unknown key {key!r}", origin.place, near))
                return
        if head == "method" and len(path) > 1:
            self.put_method(layer, path[1:], value, origin)
            return
        layer.put((*TUNER[1:], *path), value, origin)

    def put_method(self, layer: Layer, path: Path, value: Any, origin: Origin) -> None:
        """One option of one method of the stack."""
        index, rest = (int(path[0]), path[1:]) if str(path[0]).isdigit() else (0, path)
        item: dict[str, Any] = {}
        node = item
        for part in rest[:-1]:
            node = node.setdefault(str(part), {})
        node[str(rest[-1])] = value
        stack: list[dict[str, Any]] = [{} for _ in range(max(self.stacked, index + 1))]
        stack[index] = item
        layer.put((*TUNER[1:], "method"), stack, origin)

    def tuner_fields(self) -> set[str]:
        """Keys of any installed fine-tuner's own configuration."""
        names: set[str] = set()
        for registered in self.registry.family("fine_tuner").values():
            names |= {*registered.component.Config.model_fields, *registered.component.Config.aliases}
        return names

    # --- the device and the weak layers ---

    def device_type(self, merged: Layer) -> str:
        """The profile to use: as given, or for `auto` the best one whose device is there."""
        asked = descend(merged.values, ("components", "hardware", "type"))
        profiles = self.registry.family("hardware")
        if asked not in (None, "auto"):
            if asked in profiles:
                self.probe(str(asked))
            return str(asked)
        ordered = sorted(profiles, key=lambda name: -_profile(self.registry, name).priority)
        for name in ordered:
            if self.probe(name).device is not None:
                return name
        return ordered[-1] if ordered else "cpu"

    def probe(self, name: str) -> Probe:
        profile = _profile(self.registry, name)
        self.probes[name] = profile(profile.Config()).probe()
        return self.probes[name]

    def weak(self, merged: Layer, device_type: str) -> list[Layer]:
        """Defaults of the methods and of the hardware profile, weaker than anything written."""
        layers = []
        tuner = descend(merged.values, (*TUNER[:2], "type")) or "pytorch"
        for method in descend(merged.values, (*TUNER, "method")) or self.registry.default_methods(tuner):
            registered = self.registry.family("method").get(str(method.get("type")))
            if registered is not None and issubclass(registered.component, Method):
                origin = Origin("method", f"method {registered.component.name}")
                layer = Layer()
                for key, value in registered.component.training_defaults.items():
                    layer.put((*TUNER, "training", key), value, origin)
                layers.append(layer)
        probe = self.probes.get(device_type)
        if probe is not None and probe.device is not None:
            profile = _profile(self.registry, device_type)
            layer = Layer()
            for suggestion in profile(profile.Config()).suggest(probe.device):
                origin = Origin("hardware", f"hardware profile {device_type}", reason=suggestion.reason)
                layer.put((*TUNER, *suggestion.path.split(".")), suggestion.value, origin)
            layers.append(layer)
        return layers

    def with_device_block(self, stack: list[Layer], written: int, device_type: str) -> list[Layer]:
        """The stack with the strategy's `optimization.<device>` block put right above the strategy."""
        block = descend(merge(stack[:written]).values, ("optimization", device_type)) or {}
        source = merge(stack[:written])
        prefix: Path = ("optimization", device_type)
        layer = Layer()
        for path in [path for path in source.origins if path[:2] == prefix and len(path) > 2]:
            value = descend(block, path[2:])
            if not isinstance(value, dict) and value is not None:
                origin = source.origins[path]
                layer.put(
                    (*TUNER, *path[2:]), value, Origin("device", origin.place, origin.key_place, preset=origin.preset)
                )
        return [*stack[:written], layer, *stack[written:]]

    # --- plugins ---

    def required_plugins(self, merged: Layer) -> list[Problem]:
        """`plugins: [name>=1.2]`: what is not installed, does not match, or failed to load."""
        required = merged.values.get("plugins")
        if not isinstance(required, list):
            return []
        from packaging.requirements import InvalidRequirement, Requirement

        problems = []
        for index, text in enumerate(required):
            origin = merged.origin(("plugins", index))
            where = origin.place if origin else ""
            try:
                requirement = Requirement(str(text))
            except InvalidRequirement:
                problems.append(
                    Problem("LF-PLUGIN-005", f"{text!r} is no requirement", where, "write it as `llamafarm-foo>=1.2`")
                )
                continue
            problems.extend(self.unmet(requirement.name, str(text), requirement.specifier, where))
        return problems

    def unmet(self, name: str, text: str, specifier: Any, where: str) -> list[Problem]:
        found = [plugin for plugin in self.registry.plugins if plugin.distribution.lower() == name.lower()]
        if not found:
            names = {plugin.distribution for plugin in self.registry.plugins}
            hint = f"run: pip install '{text}'" + (f" ({near})" if (near := nearest(name, names)) else "")
            return [Problem("LF-PLUGIN-003", f"the plugin {name!r} is not installed", where, hint)]
        if not specifier.contains(found[0].version, prereleases=True):
            message = f"{name} {found[0].version} is installed, the strategy needs {text}"
            return [Problem("LF-PLUGIN-003", message, where, f"run: pip install '{text}'")]
        return [
            Problem("LF-PLUGIN-001", f"{failure.plugin} cannot be loaded: {failure.reason}", where)
            for failure in self.registry.failures
            if failure.plugin.distribution.lower() == name.lower()
        ]

    def stop_at(self, problems: list[Problem]) -> None:
        if problems:
            raise PluginError([*problems, *self.problems])


def _profile(registry: Registry, name: str) -> type[HardwareProfile[Any]]:
    component = registry.family("hardware")[name].component
    assert issubclass(component, HardwareProfile)
    return component


def _entry(reading: Reading, source: Source) -> Layer:
    """The wanted strategy of a file that holds several under `strategies:`, or the file itself."""
    entries = reading.values.get("strategies")
    shown = display(source.path)
    if not isinstance(entries, list):
        if source.entry:
            hint = f"use {shown} alone"
            raise StrategyError.of("LF-STRATEGY-018", f"{shown} holds one strategy, not several", hint=hint)
        return reading
    names = [str(entry.get("name", "")) if isinstance(entry, dict) else "" for entry in entries]
    if source.entry is None and len(entries) == 1:
        index = 0
    elif source.entry in names:
        index = names.index(source.entry)
    else:
        wanted = (
            f"no strategy {source.entry!r} in the file" if source.entry else f"the file holds {len(entries)} strategies"
        )
        near = nearest(source.entry or "", names)
        hint = near or f"choose one: {', '.join(f'{shown}:{name}' for name in names)}"
        raise StrategyError.of("LF-STRATEGY-018", wanted, where=shown, hint=hint)
    prefix: Path = ("strategies", index)
    layer = Layer()
    layer.values = entries[index]
    layer.origins = {path[2:]: origin for path, origin in reading.origins.items() if path[:2] == prefix}
    return layer


def _target(key: str) -> Path:
    return ("components", key) if key in COMPONENT_KEYS else (*TUNER, key)


def _nested(layer: Layer, target: Path) -> Layer:
    """A fragment's body placed at its key."""
    result = Layer()
    result.put(target, layer.values, layer.origins[()])
    result.origins.update({(*target, *path): origin for path, origin in layer.origins.items()})
    return result


def _suggest(key: str) -> str:
    """Where a bare key of a nested block belongs."""
    from llamafarm.api.config import BaseModelConfig, DatasetConfig, TrainingConfig

    for block, config in (("training", TrainingConfig), ("base_model", BaseModelConfig), ("dataset", DatasetConfig)):
        if key in config.model_fields or key in config.aliases:
            return f"write {block}.{key}"
    valid = [*Strategy.model_fields, *COMPONENT_KEYS, *FineTunerConfig.model_fields]
    return nearest(key, valid) or f"known: {one_of(valid)}"


__all__ = ["Loaded", "dotted", "load"]
