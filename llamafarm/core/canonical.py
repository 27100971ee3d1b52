"""One layer as written → the same layer in canonical shape: nesting completed, aliases and shorthands resolved.

After this, only the names of the configuration classes exist. It runs on each layer before they are merged, so that
`lora_rank` in one place and `r` in another are the same key when precedence is decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from llamafarm.api.config import Config, FineTunerConfig, TrainingConfig
from llamafarm.core.layers import Layer, Origin, Path, Unset, descend, dotted, walk
from llamafarm.core.registry import Registry
from llamafarm.core.schema import COMPONENT_KEYS, DEVICE_KEYS, ExportConfig, Strategy
from llamafarm.errors import Problem, nearest

TUNER = ("components", "fine_tuner", "config")


class Canonical(Layer):
    """A canonical layer, with what was found on the way."""

    __slots__ = ("notices", "problems")

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[Problem] = []
        self.notices: list[str] = []


def canonicalize(layer: Layer, registry: Registry, base: Mapping[str, Any]) -> Canonical:
    """Bring a layer into canonical shape.

    Args:
        layer: Values as written.
        registry: Tells the configuration class behind each `type`.
        base: What weaker layers merged to: tells the type of a component that this layer only adjusts.
    """
    return _Canonicalizer(layer, registry, base).run()


class _Canonicalizer:
    def __init__(self, layer: Layer, registry: Registry, base: Mapping[str, Any]) -> None:
        self.layer, self.registry, self.base = layer, registry, base
        self.out = Canonical()

    def run(self) -> Canonical:
        if () in self.layer.origins:
            self.out.origins[()] = self.layer.origins[()]
        self.strategy()
        return self.out

    # --- reading the layer as written ---

    def origin(self, path: Path) -> Origin:
        origin = self.layer.origin(path)
        assert origin is not None, path
        return origin

    def problem(self, id_: str, message: str, path: Path, hint: str = "", *, key: bool = False) -> None:
        origin = self.origin(path)
        self.out.problems.append(Problem(id_, message, (key and origin.key_place) or origin.place, hint))

    def unknown(self, path: Path, valid: Mapping[str, Any] | set[str], hint: str = "") -> None:
        key = str(path[-1])
        self.problem(
            "LF-STRATEGY-021", f"unknown key {key!r}{_inside(path)}", path, hint or nearest(key, valid), key=True
        )

    def copy(self, source: Path, target: Path, value: Any) -> None:
        """Place a value, keeping the origin of each of its parts."""
        self.out.put(target, value, self.origin(source))
        for inner, _ in walk(value, ()):
            if (origin := self.layer.origins.get((*source, *inner))) is not None:
                self.out.origins[(*target, *inner)] = origin

    # --- the strategy's own keys ---

    def strategy(self) -> None:
        fields = set(Strategy.model_fields)
        for key, value in self.layer.values.items():
            path: Path = (key,)
            if key == "components":
                self.components(value, path)
            elif key in COMPONENT_KEYS:
                self.component(key, value, path)
            elif key == "optimization":
                self.optimization(value, path)
            elif key == "export":
                if value is not None:
                    self.block(ExportConfig, value, path, path)
            elif key in fields:
                self.leaf(Strategy, key, value, path, path)
            elif key in FineTunerConfig.model_fields or key in FineTunerConfig.aliases:
                self.unknown(path, fields, f"it belongs under components.fine_tuner.config: {key}")
            else:
                home = home_of(key, self.registry)
                hint = f"it belongs under components.fine_tuner.config: {home}" if home else ""
                self.unknown(path, fields | set(COMPONENT_KEYS), hint)

    def components(self, value: Any, path: Path) -> None:
        if not isinstance(value, dict):
            self.problem("LF-STRATEGY-022", f"'components' must be a mapping, not {_what(value)}", path)
            return
        self.out.origins.setdefault(path, self.origin(path))
        for key, inner in value.items():
            if key in COMPONENT_KEYS:
                self.component(key, inner, (*path, key))
            else:
                self.unknown((*path, key), set(COMPONENT_KEYS))

    def component(self, family: str, value: Any, path: Path) -> None:
        """`fine_tuner`, `data_splitter` or `hardware`: {type, config}, or the type alone; null means not given."""
        if value is None:
            return
        target: Path = ("components", family)
        node = {"type": value} if isinstance(value, str) else value
        if not isinstance(node, dict):
            self.problem(
                "LF-STRATEGY-022", f"{family!r} must be a mapping of type and config, not {_what(value)}", path
            )
            return
        self.out.put(target, {}, self.origin(path))
        type_ = node.get(
            "type", descend(self.base, (*target, "type")) or ("pytorch" if family == "fine_tuner" else None)
        )
        for key, inner in node.items():
            if key == "type":
                self.copy((*path, key) if value is node else path, (*target, "type"), inner)
            elif key == "config":
                self.component_config(family, type_, inner, (*path, key))
            else:
                self.unknown((*path, key), {"type", "config"}, f"options stand under {family}.config")

    def component_config(self, family: str, type_: Any, value: Any, path: Path) -> None:
        target: Path = ("components", family, "config")
        registered = self.registry.family(family).get(str(type_))
        if registered is None:  # reported at validation, where the merged type is known; its options cannot be read
            return
        loose = self.registry.loose_keys() if isinstance(value, dict) and family == "fine_tuner" else {}
        stacked = {key: loose[key] for key in value if key in loose} if loose else {}
        own = {key: inner for key, inner in value.items() if key not in stacked} if stacked else value
        self.block(registered.component.Config, own, path, target)
        for key, method in stacked.items():
            self.stacked(method, key, value[key], (*path, key), str(type_))

    def stacked(self, type_: str, key: str, value: Any, path: Path, tuner: str) -> None:
        """An option of a method among the fine-tuner's own: the method is on the stack, behind what is there."""
        target: Path = (*TUNER, "method")
        if descend(self.out.values, target) is None:
            below = descend(self.base, target) or self.registry.default_methods(tuner, descend(self.out.values, TUNER))
            there = any(method.get("type") == type_ for method in below)  # the same stack: completed by the merge
            kept = [{"type": method.get("type")} if there else dict(method) for method in below]
            self.out.put(target, kept, self.origin(path))
        stack = descend(self.out.values, target)
        types = [method.get("type") for method in stack]
        if type_ not in types:
            stack.append({"type": type_})
            types.append(type_)
        index = types.index(type_)
        before = stack[index].get(key)
        place: Path = (*target, index, key)
        if before is not None and place in self.out.origins and self.conflict(place, before, value, path, key):
            return
        stack[index][key] = value
        self.out.origins[place] = self.origin(path)

    def optimization(self, value: Any, path: Path) -> None:
        """Per-device overrides: each device's block becomes a partial fine-tuner configuration."""
        if not isinstance(value, dict):
            self.problem("LF-STRATEGY-022", f"'optimization' must be a mapping of devices, not {_what(value)}", path)
            return
        self.out.put(path, {}, self.origin(path))
        devices = set(self.registry.family("hardware"))
        for device, block in value.items():
            if device not in devices:
                self.unknown((*path, device), devices)
            elif not isinstance(block, dict):
                self.problem("LF-STRATEGY-022", f"{device!r} must be a mapping, not {_what(block)}", (*path, device))
            else:
                self.out.put((*path, device), {}, self.origin((*path, device)))
                for key, inner in block.items():
                    self.device_key(key, inner, (*path, device, key))

    def device_key(self, key: str, value: Any, path: Path) -> None:
        name = TrainingConfig.aliases.get(key, key)
        place = DEVICE_KEYS.get(name) or (f"training.{name}" if name in TrainingConfig.model_fields else "")
        if not place:
            self.unknown(path, {*TrainingConfig.model_fields, *TrainingConfig.aliases, *DEVICE_KEYS})
            return
        self.place(("optimization", str(path[1])), place, value, path)

    # --- blocks that follow a configuration class ---

    def block(self, config: type[Config], value: Any, path: Path, target: Path) -> None:
        """A mapping that `config` describes: resolve names, then each value by its field."""
        node = value
        if not isinstance(value, dict):
            if value is None or isinstance(value, list) or not config.shorthand:
                self.problem("LF-STRATEGY-022", f"{dotted(path)!r} must be a mapping, not {_what(value)}", path)
                return
            self.out.put(target, {}, self.origin(path))
            self.place(target, config.shorthand, value, path, config=config)
            return
        self.out.origins.setdefault(target, self.origin(path))
        if descend(self.out.values, target) is None:
            self.out.put(target, {}, self.origin(path))
        for key, inner in node.items():
            if key in config.model_fields:
                self.place(target, key, inner, (*path, key), config=config)
            elif key in config.aliases:
                self.place(target, config.aliases[key], inner, (*path, key), config=config, alias=key)
            else:
                tuners = target[:3] == TUNER or target[:1] == ("method",)
                elsewhere = home_of(str(key), self.registry) if tuners else ""
                hint = f"did you mean {elsewhere}?" if elsewhere else ""
                self.unknown((*path, key), {*config.model_fields, *config.aliases}, hint)

    def blocks(self, config: type[Config], value: Any, path: Path, target: Path) -> None:
        """A list of mappings that `config` describes."""
        if not isinstance(value, list):
            self.problem("LF-STRATEGY-022", f"{dotted(path)!r} must be a list, not {_what(value)}", path)
            return
        self.out.put(target, [{} for _ in value], self.origin(path))
        for index, item in enumerate(value):
            self.block(config, item, (*path, index), (*target, index))

    def place(
        self, block: Path, name: str, value: Any, path: Path, *, config: type[Config] | None = None, alias: str = ""
    ) -> None:
        """Put a value at `name` (which may be dotted) below `block`, unless another spelling already did."""
        target: Path = (*block, *name.split("."))
        before = descend(self.out.values, target)
        if before is not None and not isinstance(value, dict) and self.conflict(target, before, value, path, alias):
            return
        field_config = None if config is None or "." in name else _config_of(config.model_fields[name])
        if value is None and (field_config is not None or name == "method"):
            return  # `dataset:` with nothing behind it: not given
        if name == "method" and target[:3] == TUNER:
            self.methods(value, path, target)
        elif field_config is not None and config is not None and _is_list(config.model_fields[name]):
            self.blocks(field_config, value, path, target)
        elif field_config is not None:
            self.block(field_config, value, path, target)
        else:
            self.leaf(config, name, value, path, target)

    def conflict(self, target: Path, before: Any, value: Any, path: Path, alias: str) -> bool:
        """Two spellings of one key. Returns True when this one is to be left out."""
        first = self.out.origins[target]
        here = self.origin(path)
        key, first_key = here.key_place or here.place, first.key_place or first.place
        if before == value:
            if here.kind != "set":
                self.out.notices.append(f"{key}: {path[-1]!r} repeats {target[-1]!r} (at {first_key})")
            return True
        default = TrainingConfig.model_fields["optim"].default
        if target[-1] == "optim" and default in (before, value):
            # The documented example names both; the one that says more than the default is meant.
            kept = value if before == default else before
            self.out.notices.append(
                f"{key}: 'optimizer' and 'optim' are one key (first at {first_key}); {kept!r} is used"
            )
            return bool(kept == before)
        self.problem(
            "LF-STRATEGY-023",
            f"{path[-1]!r} and {'another spelling of it' if alias else 'its alias'} disagree: {value!r} here, "
            f"{before!r} at {first.place}",
            path,
            f"keep {str(target[-1])!r}",
            key=True,
        )
        return True

    def leaf(self, config: type[Config] | None, name: str, value: Any, path: Path, target: Path) -> None:
        field = config.model_fields.get(name) if config else None
        secret = field is not None and SecretStr in _flat(field.annotation)
        for inner, leaf in walk(value, path):
            if isinstance(leaf, Unset):
                if secret and leaf is value:
                    self.out.notices.append(
                        f"{self.origin(path).place}: {leaf.variable} is not set: {dotted(target[3:])} is left empty"
                    )
                    value = None
                    break
                self.problem(
                    "LF-STRATEGY-014",
                    f"the environment variable {leaf.variable} is not set",
                    inner,
                    f"set it, or write ${{{leaf.variable}:-default}}",
                )
                return
        if isinstance(value, bool) and field is not None and _wants_number(field):
            self.problem("LF-STRATEGY-024", f"{name!r} must be a number, got {str(value).lower()}", path)
            return
        self.copy(path, target, value)

    def methods(self, value: Any, path: Path, target: Path) -> None:
        """`method`: one, or a list that stacks; each a mapping with its type, or the type alone."""
        items = value if isinstance(value, list) else [value]
        types = [str(item.get("type", "")) if isinstance(item, dict) else str(item) for item in items]
        below = [str(item.get("type")) for item in descend(self.base, target) or []]
        self.out.put(target, [{} for _ in items], self.origin(path))
        for index, item in enumerate(items):
            here: Path = (*path, index) if isinstance(value, list) else path
            type_ = types[index] or (below[index] if len(below) == len(items) else "")
            self.method(type_, item, here, (*target, index))

    def method(self, type_: str, item: Any, path: Path, target: Path) -> None:
        nodes = descend(self.out.values, target[:-1])
        index = int(target[-1])
        if not isinstance(item, dict | str):
            self.problem("LF-STRATEGY-022", f"a method must be a mapping with a type, not {_what(item)}", path)
            return
        if not type_:
            types = ", ".join(sorted(self.registry.family("method")))
            self.problem("LF-STRATEGY-025", "the method has no 'type'", path, f"installed: {types}")
            return
        nodes[index]["type"] = type_
        type_path = (*path, "type") if isinstance(item, dict) and "type" in item else path
        self.out.origins[target] = self.origin(path)
        if isinstance(item, str) or "type" in item:
            self.out.origins[(*target, "type")] = self.origin(type_path)
        if isinstance(item, str):
            return
        registered = self.registry.family("method").get(type_)
        config = registered.component.Config if registered else None
        rest = {key: inner for key, inner in item.items() if key != "type"}
        if config is None:  # reported at validation
            nodes[index].update(rest)
            return
        staged = _Canonicalizer(self.layer, self.registry, self.base)
        staged.block(config, rest, path, ("method",))
        nodes[index].update(staged.out.values.get("method", {}))
        for inner, origin in staged.out.origins.items():
            if len(inner) > 1:
                self.out.origins[(*target, *inner[1:])] = origin
        self.out.problems.extend(staged.out.problems)
        self.out.notices.extend(staged.out.notices)


def home_of(key: str, registry: Registry) -> str:
    """Where an option of the fine-tuner's blocks, or of a method, belongs: `training.seed`; empty if nowhere."""
    for block in ("training", "base_model", "dataset", "evaluation"):
        config = _config_of(FineTunerConfig.model_fields[block])
        if config is not None and (key in config.model_fields or key in config.aliases):
            return f"{block}.{key}"
    methods = [one.component.Config for _, one in sorted(registry.family("method").items())]
    return f"method.{key}" if any(key in one.model_fields or key in one.aliases for one in methods) else ""


def _inside(path: Path) -> str:
    return f" in {dotted(path[:-1])}" if len(path) > 1 else ""


def _what(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "a word", bool: "true/false", int: "a number", float: "a number"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def _flat(annotation: Any) -> tuple[Any, ...]:
    """The annotation and everything inside it."""
    return (annotation, *(inner for argument in get_args(annotation) for inner in _flat(argument)))


def _config_of(field: FieldInfo) -> type[Config] | None:
    """The configuration class a field holds directly (or optionally), if it does."""
    for annotation in _flat(field.annotation):
        if isinstance(annotation, type) and issubclass(annotation, Config):
            return annotation
    return None


def _is_list(field: FieldInfo) -> bool:
    return any(get_origin(annotation) is tuple for annotation in _flat(field.annotation))


def _wants_number(field: FieldInfo) -> bool:
    kinds = _flat(field.annotation)
    return (int in kinds or float in kinds) and bool not in kinds and str not in kinds
