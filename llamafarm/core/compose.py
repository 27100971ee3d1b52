"""Layers, weak to strong → one dictionary with the origin of every value. The only module that knows OmegaConf."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import OmegaConf

from llamafarm.api.config import Config, FineTunerConfig
from llamafarm.core.canonical import TUNER
from llamafarm.core.layers import Layer, Path, descend, walk

_SLOTS: tuple[Path, ...] = (("components", "fine_tuner"), ("components", "data_splitter"), ("components", "hardware"))
_METHOD: Path = (*TUNER, "method")
ALTERNATIVES: Mapping[Path, tuple[str, ...]] = {
    (*TUNER, name): field.annotation.exclusive
    for name, field in FineTunerConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Config) and field.annotation.exclusive
}
"""Blocks with alternatives of which at most one is set → their names."""


def merge(layers: Iterable[Layer]) -> Layer:
    """Merge canonical layers; the later one wins.

    Mappings merge; lists and scalars are replaced. A component of another `type`, and a method stack of other types,
    replaces the weaker one whole, so that none of its options stays behind. Of alternatives (`dataset.path` and
    `dataset.generate`) the stronger layer's choice removes the other.
    """
    result = Layer()
    for layer in layers:
        _drop_replaced(result, layer)
        values = _join_methods(result.values, layer.values)
        merged = OmegaConf.merge(_shield(result.values), _shield(values))
        result.values = _unshield(OmegaConf.to_container(merged, resolve=False))
        for path, value in walk(layer.values):
            if not isinstance(value, dict) and path in layer.origins:
                _forget(result, path, keep=isinstance(value, list) and path == _METHOD)
            if path in layer.origins and not (isinstance(value, dict) and path in result.origins):
                result.origins[path] = layer.origins[path]
    return result


def _drop_replaced(result: Layer, layer: Layer) -> None:
    for slot in _SLOTS:
        new, old = descend(layer.values, (*slot, "type")), descend(result.values, (*slot, "type"))
        if new is not None and old is not None and new != old:
            _remove(result, slot)
    new_methods, old_methods = descend(layer.values, _METHOD), descend(result.values, _METHOD)
    if new_methods and old_methods and _types(new_methods) != _types(old_methods):
        _remove(result, _METHOD)
    for block, group in ALTERNATIVES.items():
        chosen = descend(layer.values, block) or {}
        for key in group:
            if chosen.get(key) is not None:
                for other in group:
                    if other != key and descend(result.values, (*block, other)) is not None:
                        _remove(result, (*block, other))


def _types(methods: list[dict[str, Any]]) -> list[Any]:
    return [method.get("type") for method in methods]


def _join_methods(weak: dict[str, Any], strong: dict[str, Any]) -> dict[str, Any]:
    """The strong layer with its method list completed from the weak one: OmegaConf replaces lists whole."""
    new, old = descend(strong, _METHOD), descend(weak, _METHOD)
    if not new or not old:
        return strong
    joined = [{**before, **after} for before, after in zip(old, new, strict=True)]
    config = {**descend(strong, TUNER), "method": joined}
    tuner = {**descend(strong, TUNER[:2]), "config": config}
    return {**strong, "components": {**strong["components"], "fine_tuner": tuner}}


def _remove(layer: Layer, path: Path) -> None:
    parent = descend(layer.values, path[:-1])
    if isinstance(parent, dict):
        parent.pop(path[-1], None)
    _forget(layer, path)


def _forget(layer: Layer, path: Path, *, keep: bool = False) -> None:
    if not keep:
        for known in [known for known in layer.origins if known[: len(path)] == path]:
            del layer.origins[known]


def _shield(value: Any) -> Any:
    """OmegaConf would read `${` in text as a reference; by now every such text is meant literally."""
    if isinstance(value, dict):
        return {key: _shield(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shield(inner) for inner in value]
    return value.replace("${", _SHIELD) if isinstance(value, str) else value


def _unshield(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _unshield(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_unshield(inner) for inner in value]
    return value.replace(_SHIELD, "${") if isinstance(value, str) else value


_SHIELD = "$\N{WORD JOINER}{"
