"""What stands above a strategy: `LLAMAFARM_*` variables, flags, and `--set a.b=c`, each as a layer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llamafarm.api.config import Config, FineTunerConfig
from llamafarm.core.canonical import TUNER, home_of
from llamafarm.core.layers import Layer, Origin, Path, descend
from llamafarm.core.registry import Registry
from llamafarm.core.request import Flag
from llamafarm.core.schema import COMPONENT_KEYS, Strategy
from llamafarm.core.yaml_source import parse_scalar
from llamafarm.errors import LlamaFarmError, Problem, nearest, one_of

_PREFIX = "LLAMAFARM_"


@dataclass(frozen=True, slots=True)
class Overrides:
    """Reads overrides; what is wrong with them goes to `problems`.

    Attributes:
        registry: Tells the keys of installed fine-tuners.
        written: The strategy with its fragments, which `method.<type>` refers to.
        problems: Receives what cannot be understood.
    """

    registry: Registry
    written: Mapping[str, Any]
    problems: list[Problem]

    def layers(self, flags: tuple[Flag, ...], sets: tuple[str, ...]) -> list[Layer]:
        """All, the strongest last.

        What `sets` swap takes the old component's options away, and not what is said beside it: flags and variables
        that choose no component come after it, and a flag that puts a method on the stack means the stack it chooses.
        """
        loose = self.registry.loose_keys()
        swaps, leaves = self.sets(sets)
        choosing, settings = self.environment()
        chosen = tuple(flag for flag in flags if flag.path == "method")
        plain = tuple(flag for flag in flags if flag.path not in (*loose, "method"))
        on_top = tuple(flag for flag in flags if flag.path in loose)
        return [choosing, self.flags(chosen), *swaps, settings, self.flags(plain), self.flags(on_top), *leaves]

    def environment(self) -> tuple[Layer, Layer]:
        """`LLAMAFARM_TRAINING__LEARNING_RATE=1e-4` and the like: those of components and methods, and all others."""
        components, others = Layer(), Layer()
        for name, text in sorted(os.environ.items()):
            if name.startswith(_PREFIX) and "__" in name:
                path = name.removeprefix(_PREFIX).lower().replace("__", ".")
                layer = components if path.partition(".")[0] in (*COMPONENT_KEYS, "components", "method") else others
                self._put(layer, path, self._parse(text, name), Origin("environment", name, name))
        return components, others

    def flags(self, flags: tuple[Flag, ...]) -> Layer:
        """Values of flags."""
        layer = Layer()
        for flag in flags:
            self._put(layer, flag.path, flag.value, Origin("flag", flag.spelling, flag.spelling))
        return layer

    def sets(self, texts: tuple[str, ...]) -> tuple[list[Layer], list[Layer]]:
        """`--set` values: those that swap a component, and those that set one option, which come after them."""
        swaps: list[Layer] = []
        leaves: list[Layer] = []
        for text in texts:
            key, equals, value = (part.strip() for part in text.partition("="))
            place = f"--set {key}"
            *owner, last = key.split(".")
            if not equals or not key:
                hint = "write --set training.seed=7"
                self.problems.append(Problem("LF-STRATEGY-015", f"--set {text!r} has no '='", "", hint))
            elif last == "type" and owner:
                hint = f"write --set {'.'.join(owner)}={value}: it also drops the options of the old one"
                self.problems.append(Problem("LF-STRATEGY-016", "a component's type is not set alone", place, hint))
            else:
                layer = Layer()
                self._put(layer, self._indexed(key), self._parse(value, place), Origin("set", place, place))
                (swaps if last in (*COMPONENT_KEYS, "method") else leaves).append(layer)
        return swaps, leaves

    def _methods(self) -> list[dict[str, Any]]:
        return descend(self.written, (*TUNER, "method")) or [{}]

    def _indexed(self, key: str) -> str:
        """`method.lora.r` → `method.0.r` where the stack has lora in the first place."""
        parts = key.split(".")
        types = [method.get("type") for method in self._methods()]
        if parts[0] == "method" and len(parts) > 2 and parts[1] in types:
            parts[1] = str(types.index(parts[1]))
        return ".".join(parts)

    def _parse(self, text: str, place: str) -> Any:
        try:
            return parse_scalar(text)
        except LlamaFarmError as error:
            message = f"the value {text!r} is {error.problems[0].message}"
            self.problems.append(Problem("LF-STRATEGY-017", message, place))
            return None

    def _put(self, layer: Layer, key: str, value: Any, origin: Origin) -> None:
        """Put an override where it belongs; short keys are below the fine-tuner's configuration."""
        path: Path = tuple(key.split("."))
        head = str(path[0])
        if head in COMPONENT_KEYS and len(path) > 1 and path[1] not in ("type", "config"):
            layer.put((head, "config", *path[1:]), value, origin)
        elif head in Strategy.model_fields or head in COMPONENT_KEYS:
            layer.put(path, value, origin)
        elif head == "method" and len(path) > 1:
            layer.put((*TUNER[1:], "method"), self._stack(path[1:], value), origin)
        elif head in self._tuner_keys():
            layer.put((*TUNER[1:], *path), value, origin)
        else:
            self.problems.append(Problem("LF-STRATEGY-021", f"unknown key {key!r}", origin.place, self._suggest(key)))

    def _stack(self, path: Path, value: Any) -> list[dict[str, Any]]:
        """A method stack that sets one option of one method and says nothing of the others."""
        index, rest = (int(path[0]), path[1:]) if str(path[0]).isdigit() else (0, path)
        item: dict[str, Any] = {}
        node = item
        for part in rest[:-1]:
            node = node.setdefault(str(part), {})
        node[str(rest[-1])] = value
        stack: list[dict[str, Any]] = [{} for _ in range(max(len(self._methods()), index + 1))]
        stack[index] = item
        return stack

    def _tuner_keys(self) -> set[str]:
        """Keys of any installed fine-tuner's configuration."""
        configs: list[type[Config]] = [FineTunerConfig]
        configs += [registered.component.Config for registered in self.registry.family("fine_tuner").values()]
        own = {key for config in configs for key in (*config.model_fields, *config.aliases)}
        return own | set(self.registry.loose_keys())

    def _suggest(self, key: str) -> str:
        """Where a bare key of a nested block belongs."""
        if home := home_of(key, self.registry):
            return f"write {home}"
        valid = [*Strategy.model_fields, *COMPONENT_KEYS, *FineTunerConfig.model_fields]
        return nearest(key, valid) or f"known: {one_of(valid)}"
