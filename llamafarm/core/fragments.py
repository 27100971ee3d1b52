"""Checking a file that is no whole strategy: the body of one key, or a few loose keys, as documents quote them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from llamafarm.api.config import BaseModelConfig, Config, DatasetConfig, FineTunerConfig, TrainingConfig
from llamafarm.core.canonical import TUNER, canonicalize
from llamafarm.core.compose import merge
from llamafarm.core.layers import Layer, Path, descend, walk
from llamafarm.core.registry import Registry
from llamafarm.core.schema import COMPONENT_KEYS, Strategy
from llamafarm.core.validate import validate
from llamafarm.core.yaml_source import read_yaml
from llamafarm.errors import Problem, nearest

_STRATEGY_MARKS = ("components", "fine_tuner", "strategies", "defaults")
_BLOCKS: Mapping[str, type[Config]] = {
    "training": TrainingConfig,
    "dataset": DatasetConfig,
    "base_model": BaseModelConfig,
}


@dataclass(frozen=True, slots=True)
class Fragment:
    """A valid fragment: where its keys belong, and what a user should know."""

    keys: tuple[str, ...]
    notices: tuple[str, ...]


def is_fragment(values: Mapping[str, Any]) -> bool:
    """Whether a file's top level is no strategy's."""
    return not any(mark in values for mark in _STRATEGY_MARKS)


def check_fragment(path: FilePath, registry: Registry) -> Fragment:
    """Validate a fragment as part of an otherwise default strategy.

    Raises:
        StrategyError: With every problem found.
    """
    reading = read_yaml(path, kind="fragment")
    problems, notices = list(reading.problems), list(reading.notices)
    layers = [Layer(origins={(): reading.origins[()]})]
    keys = []
    for key, value in reading.values.items():
        target = _home(key, registry)
        if target is None:
            origin = reading.origins[(key,)]
            known = [*Strategy.model_fields, *COMPONENT_KEYS, *FineTunerConfig.model_fields, *_loose(registry)]
            message = f"unknown key {key!r}: it belongs to no strategy block and to no installed component"
            problems.append(Problem("LF-STRATEGY-021", message, origin.key_place, nearest(key, known)))
            continue
        keys.append(".".join(map(str, target)))
        layer = layers[-1]
        if len(target) == 3:
            layer.put((*TUNER[1:], "method"), [{"type": target[1], key: value}], reading.origins[(key,)])
            continue
        place: Path = target if target[0] in (*COMPONENT_KEYS, *Strategy.model_fields) else (*TUNER[1:], *target)
        if not _free(layer, place):  # `dataset: FILE` and one of its options: short and long form at once
            layers.append(layer := Layer(origins={(): reading.origins[()]}))
        layer.put(place, value, reading.origins[(key,)])
        layer.origins.update({(*place, *inner): reading.origins[(key, *inner)] for inner, _ in walk(value)})
    canonical = [canonicalize(layer, registry, {}) for layer in layers]
    problems += [problem for one in canonical for problem in one.problems]
    validate(merge(canonical), registry, problems)
    return Fragment(tuple(keys), (*notices, *(notice for one in canonical for notice in one.notices)))


def _free(layer: Layer, place: Path) -> bool:
    """Whether a value can be put there: nothing short stands on the way, nothing long at the place."""
    above = (descend(layer.values, place[:length]) for length in range(1, len(place)))
    return all(node is None or isinstance(node, dict) for node in above) and descend(layer.values, place) is None


def _loose(registry: Registry) -> dict[str, Path]:
    """Every key of an inner block and of a method → where it belongs."""
    found: dict[str, Path] = {}
    for name, registered in registry.family("method").items():
        config = registered.component.Config
        for key in (*config.model_fields, *config.aliases):
            found.setdefault(key, ("method", name, key))
    for block, config in _BLOCKS.items():
        for key in (*config.model_fields, *config.aliases):
            found[key] = (block, key)
    return found


def _home(key: str, registry: Registry) -> Path | None:
    if key in COMPONENT_KEYS or key in Strategy.model_fields:
        return (key,)
    if key in FineTunerConfig.model_fields or key in FineTunerConfig.aliases:
        return (key,)
    return _loose(registry).get(key)
