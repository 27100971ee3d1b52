"""A request → the composed and validated strategy, with the origin of every value. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llamafarm.api.components import Method
from llamafarm.api.config import FineTunerConfig
from llamafarm.api.values import DeviceSpec, Probe
from llamafarm.core.canonical import TUNER, Canonical, canonicalize
from llamafarm.core.compose import merge
from llamafarm.core.devices import FailedProbe, choose_device, device_block, suggestions
from llamafarm.core.layers import Layer, Origin, Path, descend
from llamafarm.core.overrides import Overrides
from llamafarm.core.registry import Registry
from llamafarm.core.request import Request
from llamafarm.core.requirements import unmet_requirements
from llamafarm.core.resources import Source, find_fragment, find_strategy
from llamafarm.core.schema import COMPONENT_KEYS, SEVERAL_BLOCKS, Strategy
from llamafarm.core.validate import validate
from llamafarm.core.yaml_source import Reading, display, read_yaml
from llamafarm.data.registry import FILE
from llamafarm.errors import PluginError, Problem, SecurityError, StrategyError, nearest


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


def load(request: Request, registry: Registry, device: DeviceSpec | None = None) -> Loaded:
    """Compose and validate; with `device`, for that one instead of this machine's.

    Raises:
        StrategyError: With every problem found.
        PluginError: If a component or plugin that was asked for is missing, broken or ambiguous.
        SecurityError: If the strategy asks for what only the command line may.
    """
    from llamafarm.core.permissions import refusals

    loaded = _Loading(registry, device).load(request)
    if refused := [problem for error in refusals(loaded) for problem in error.problems]:
        raise SecurityError(refused)
    return loaded


@dataclass(slots=True)
class _Loading:
    registry: Registry
    instead: DeviceSpec | None = None
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def load(self, request: Request) -> Loaded:
        source = find_strategy(request.strategy, self.registry) if request.strategy is not None else None
        written = self.read(source) if source else Layer()
        self.choose_fragments(written, request)
        below, strategy = self.canonical([*self.fragments(written), written], Layer())
        layers = Overrides(self.registry, strategy.values, self.problems).layers(request.flags, request.sets)
        above, overridden = self.canonical(layers, strategy)
        values = overridden.values
        device, probes = choose_device(values, self.registry, self.instead)
        failed = [(name, probe.reason) for name, probe in probes.items() if isinstance(probe, FailedProbe)]
        self.notices += [f"hardware profile {name!r}: {why}" for name, why in failed]
        weak = [*self.method_defaults(values), suggestions(values, self.registry, device, probes.get(device))]
        merged = merge([*weak, *_dataset_dir(source), *below, device_block(overridden, device), *above])
        if unmet := unmet_requirements(merged, self.registry):
            raise PluginError([*unmet, *self.problems])
        model = validate(merged, self.registry, self.problems)
        notices = tuple(dict.fromkeys(self.notices))
        return Loaded(model, merged.values, merged.origins, notices, probes, device, source)

    def read(self, source: Source) -> Layer:
        reading = read_yaml(source.path, preset=source.preset)
        self.collect(reading)
        return _entry(reading, source)

    def collect(self, found: Reading | Canonical) -> None:
        self.problems.extend(problem for problem in found.problems if problem not in self.problems)
        self.notices.extend(found.notices)

    def canonical(self, layers: list[Layer], below: Layer) -> tuple[list[Layer], Layer]:
        """The layers in canonical shape, and all merged; each may lean on the types that those below it name."""
        stack: list[Layer] = []
        merged = below
        for layer in layers:
            found = canonicalize(layer, self.registry, merged.values)
            self.collect(found)
            stack.append(found)
            merged = merge([merged, found])
        return stack, merged

    def choose_fragments(self, written: Layer, request: Request) -> None:
        """Take `--set defaults.KEY=NAME` and its variable into account: fragments are read before overrides."""
        overrides = Overrides(self.registry, {}, [])  # their problems are found again when they are all read
        for layer in overrides.layers((), request.sets):
            chosen = layer.values.get("defaults")
            if chosen and not isinstance(written.values.get("defaults", {}), dict):
                del written.values["defaults"]  # as when they are merged: what stands above replaces it
            for key, name in chosen.items() if isinstance(chosen, dict) else ():
                written.put(("defaults", key), name, layer.origins[("defaults", key)])

    def fragments(self, written: Layer) -> list[Layer]:
        """The fragments that `defaults:` names, each as a layer."""
        defaults = written.values.get("defaults") or {}
        if not isinstance(defaults, dict):
            return []
        layers = []
        for key, name in defaults.items():
            origin = written.origin(("defaults", key))
            where = origin.place if origin else ""
            known = [*FineTunerConfig.model_fields, *COMPONENT_KEYS, *SEVERAL_BLOCKS]
            if key not in known:
                hint = nearest(key, known)
                self.problems.append(Problem("LF-STRATEGY-021", f"unknown key {key!r} in defaults", where, hint))
                continue
            source = find_fragment(key, str(name), where)
            reading = read_yaml(source.path, kind="fragment", preset=source.preset)
            self.collect(reading)
            layers.append(_nested(reading, key))
        return layers

    def method_defaults(self, values: Mapping[str, Any]) -> list[Layer]:
        """What each method of the stack suggests for training, the weakest of all."""
        layers = []
        tuner = descend(values, (*TUNER[:2], "type")) or "pytorch"
        given = descend(values, TUNER)
        for method in descend(values, (*TUNER, "method")) or self.registry.default_methods(tuner, given):
            registered = self.registry.family("method").get(str(method.get("type")))
            if registered is not None and issubclass(registered.component, Method):
                layer = Layer()
                for key, value in registered.component.training_defaults.items():
                    layer.put((*TUNER, "training", key), value, Origin("method", f"method {registered.component.name}"))
                layers.append(layer)
        return layers


def _dataset_dir(source: Source | None) -> list[Layer]:
    """Names of datasets are looked up beside the strategy first, if they are kept there."""
    if source is None or source.preset or not (source.path.parent / FILE).is_file():
        return []
    layer = Layer()
    folder = str(source.path.parent)
    layer.put((*TUNER, "dataset", "dataset_dir"), folder, Origin("default", f"{FILE} beside the strategy"))
    return [layer]


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


def _nested(layer: Layer, key: str) -> Layer:
    """A fragment's body placed at its key; of one that holds several blocks, each at its own."""
    target: Path = ("components", key) if key in COMPONENT_KEYS else (*TUNER, key)
    if key in SEVERAL_BLOCKS:
        target = TUNER
    result = Layer()
    result.put(target, layer.values, layer.origins[()])
    result.origins.update({(*target, *path): origin for path, origin in layer.origins.items()})
    return result
