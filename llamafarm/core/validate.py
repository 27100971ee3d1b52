"""Canonical values → the frozen, typed `Strategy`; every problem at once, each with its place."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from llamafarm.api.config import BaseModelConfig, TrainingConfig
from llamafarm.core.canonical import TUNER
from llamafarm.core.compose import ALTERNATIVES
from llamafarm.core.layers import Layer, Path, descend, dotted
from llamafarm.core.registry import Registry
from llamafarm.core.schema import COMPONENT_KEYS, Strategy, strategy_model
from llamafarm.errors import PluginError, Problem, StrategyError


def validate(merged: Layer, registry: Registry, problems: list[Problem]) -> Strategy:
    """Validate merged canonical values; `problems` are those found so far.

    Raises:
        StrategyError: With all problems.
        PluginError: If one of them is a plugin's.
    """
    values = _complete(merged.values, registry)
    unknown = _take_unknown_types(merged, values, registry)
    found = _device_blocks(merged)
    strategy: Strategy | None = None
    try:
        strategy = strategy_model(registry).model_validate(values)
    except ValidationError as error:
        found += [_translate(item["loc"], item, merged) for item in error.errors(include_url=False)]
    everything = _once([*problems, *unknown, *found, *_exclusive(merged)])
    if everything:
        everything.sort(key=_reading_order)
        kind = PluginError if any(problem.id.startswith("LF-PLUGIN") for problem in everything) else StrategyError
        raise kind(everything)
    assert strategy is not None
    return strategy


def _complete(values: dict[str, Any], registry: Registry) -> dict[str, Any]:
    """The values with the components that may be left out: pytorch, lora, auto."""
    components = dict(values.get("components") or {})
    tuner = {"type": "pytorch", "config": {}, **(components.get("fine_tuner") or {})}
    config = dict(tuner["config"]) if isinstance(tuner["config"], dict) else tuner["config"]
    if isinstance(config, dict) and not config.get("method"):
        config["method"] = registry.default_methods(tuner["type"], config)
    components["fine_tuner"] = {**tuner, "config": config}
    components["hardware"] = {"type": "auto", **(components.get("hardware") or {})}
    return {**values, "components": components}


def _take_unknown_types(merged: Layer, values: dict[str, Any], registry: Registry) -> list[Problem]:
    """Problems with components that are not installed; they are taken out, so that the rest can be validated too."""
    problems: list[Problem] = []

    def known(family: str, node: Any, path: Path) -> bool:
        if not isinstance(node, dict) or (family == "hardware" and node.get("type") == "auto"):
            return True
        origin = merged.origin((*path, "type"))
        where = origin.place if origin else ""
        type_ = node.get("type")
        missing = Problem("LF-STRATEGY-025", f"{family!r} has no 'type'", where)
        problem = missing if type_ is None else registry.problem(family, str(type_), where)
        if problem:
            problems.append(problem)
        return problem is None

    components = values["components"]
    for family in COMPONENT_KEYS:
        if not known(family, components.get(family), ("components", family)):
            components[family] = {"type": "pytorch", "config": {}} if family == "fine_tuner" else None
            if family == "hardware":
                components[family] = {"type": "auto"}
    config = components["fine_tuner"]["config"]
    methods = config.get("method") if isinstance(config, dict) else None
    if isinstance(methods, list):
        config["method"] = [
            node for index, node in enumerate(methods) if known("method", node, (*TUNER, "method", index))
        ] or registry.default_methods(components["fine_tuner"]["type"], config)
    return problems


def _device_blocks(merged: Layer) -> list[Problem]:
    """Problems in `optimization` blocks, also those of devices that are not here."""
    problems = []
    for device, blocks in (merged.values.get("optimization") or {}).items():
        for name, config in (("training", TrainingConfig), ("base_model", BaseModelConfig)):
            try:
                config.model_validate(blocks.get(name, {}))
            except ValidationError as error:
                prefix: Path = ("optimization", device, name)
                problems += [
                    _translate((*prefix, *item["loc"]), item, merged) for item in error.errors(include_url=False)
                ]
    return problems


def _exclusive(merged: Layer) -> list[Problem]:
    """Alternatives that are both given in one place."""
    problems = []
    for path, names in ALTERNATIVES.items():
        block = descend(merged.values, path) or {}
        given = [name for name in names if block.get(name) is not None]
        if len(given) > 1:
            origin = merged.origin((*path, given[1]))
            both = " and ".join(repr(name) for name in given)
            where = origin.place if origin else ""
            problems.append(Problem("LF-STRATEGY-026", f"{path[-1]} has both {both}", where, "keep one"))
    return problems


def _once(problems: list[Problem]) -> list[Problem]:
    """Without repeats: one wrong value may show in a device block and where it is used, or as a refused tag too."""
    first: dict[tuple[str, str], Problem] = {}
    for problem in problems:
        wrong_value = problem.id in ("LF-STRATEGY-024", "LF-STRATEGY-028")
        if not (wrong_value and problem.where and problem.where in {place for _, place in first}):
            first.setdefault((problem.id, problem.where or problem.message), problem)
    return list(first.values())


def _reading_order(problem: Problem) -> tuple[str, int, int]:
    name, _, rest = problem.where.partition(":")
    numbers = [int(part) for part in rest.split(":") if part.isdigit()]
    return name, numbers[0] if numbers else 0, numbers[1] if len(numbers) > 1 else 0


def _translate(location: tuple[str | int, ...], error: Any, merged: Layer) -> Problem:
    """A pydantic error in our words, at the place of the value."""
    path = _in_tree(location, merged.values)
    origin = merged.origin(path)
    where = origin.place if origin else ""
    name = dotted(path).removeprefix("components.fine_tuner.config.")
    given = descend(merged.values, path)
    got = f", got {given!r}" if isinstance(given, str | int | float | bool) and not _secret(path) else ""
    kind = error["type"]
    context = error.get("ctx", {})
    if kind == "missing":
        return Problem(
            "LF-STRATEGY-027", f"the key {str(location[-1])!r} is missing in {dotted(path) or 'the file'}", where
        )
    if kind == "literal_error":
        return Problem("LF-STRATEGY-028", f"{name} must be {context['expected']}{got}", where)
    expected = {
        "int_parsing": "a whole number",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_parsing": "a number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_parsing": "true or false",
        "bool_type": "true or false",
        "string_type": "text",
        "tuple_type": "a list",
        "list_type": "a list",
        "dict_type": "a mapping",
        "model_type": "a mapping",
        "greater_than": f"greater than {context.get('gt')}",
        "greater_than_equal": f"at least {context.get('ge')}",
        "less_than": f"less than {context.get('lt')}",
        "less_than_equal": f"at most {context.get('le')}",
    }.get(kind)
    if expected:
        return Problem("LF-STRATEGY-024", f"{name} must be {expected}{got}", where)
    ours = error["msg"].removeprefix("Value error, ")
    message = ours if kind == "value_error" else f"{ours[:1].lower()}{ours[1:]}"
    return Problem("LF-STRATEGY-029", f"{name}: {message}", where)


def _in_tree(location: tuple[str | int, ...], values: Any) -> Path:
    """Pydantic's location without the tags of unions, which stand in no file."""
    path: list[str | int] = []
    for part in location:
        inner = _child(values, part)
        if inner is not _MISSING:
            values = inner
            path.append(part)
    return tuple(path)


_MISSING = object()


def _child(values: Any, part: str | int) -> Any:
    if isinstance(values, dict):
        return values.get(part, _MISSING)
    if isinstance(values, list) and isinstance(part, int) and part < len(values):
        return values[part]
    return _MISSING


def _secret(path: Path) -> bool:
    return any("token" in str(part) for part in path)
