"""Installed plugins → components by family and type; what failed to load, and names that clash.

Each plugin is loaded alone: a broken one is recorded and never matters to a strategy that does not ask for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from inspect import isabstract
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pluggy

from llamafarm.api import hooks
from llamafarm.api.components import Component, DataSplitter, FineTuner, HardwareProfile, Method
from llamafarm.api.values import RunContext, TrainingResult
from llamafarm.core.distributions import GROUP, Announced, Plugin, announced
from llamafarm.errors import PluginError, Problem, nearest, one_of

DEFAULT_SPLITTER = "hash"
"""What holds rows out when evaluation is asked for and nothing else says which rows."""
FAMILIES: Mapping[str, tuple[str, type[Component[Any]]]] = MappingProxyType(
    {
        "fine_tuner": ("llamafarm_fine_tuners", FineTuner),
        "method": ("llamafarm_methods", Method),
        "hardware": ("llamafarm_hardware_profiles", HardwareProfile),
        "data_splitter": ("llamafarm_data_splitters", DataSplitter),
    }
)
FAMILY_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "fine_tuner": "fine-tuner",
        "method": "method",
        "hardware": "hardware profile",
        "data_splitter": "data splitter",
    }
)


@dataclass(frozen=True, slots=True)
class Failure:
    """A plugin that could not be loaded, or one of its components that could not be registered."""

    plugin: Plugin
    reason: str


@dataclass(frozen=True, slots=True)
class Registered:
    """A component and the plugin it comes from."""

    component: type[Component[Any]]
    plugin: Plugin


@dataclass(frozen=True, slots=True)
class Registry:
    """What is installed.

    Attributes:
        plugins: All plugins that were found, loaded or not; disabled ones are left out.
        components: family → type → what provides it; a clashing name is in `clashes` instead.
        clashes: (family, type) → all its providers.
        failures: What could not be loaded, and why.
        strategy_folders: Folders of presets that plugins bring.
        manager: Calls the observers.
        refused: Methods that are not offered → the reason.
    """

    plugins: tuple[Plugin, ...] = ()
    components: Mapping[str, Mapping[str, Registered]] = field(default_factory=dict)
    clashes: Mapping[tuple[str, str], tuple[Registered, ...]] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    strategy_folders: tuple[tuple[Plugin, Path], ...] = ()
    manager: pluggy.PluginManager | None = None
    refused: Mapping[str, str] = field(default_factory=dict)

    def family(self, family: str) -> Mapping[str, Registered]:
        """Components of a family by type."""
        return self.components.get(family, {})

    def problem(self, family: str, type_: str, where: str = "") -> Problem | None:
        """Why `type_` cannot be used, or None when it can."""
        word = FAMILY_WORDS[family]
        if type_ in self.family(family):
            return None
        if providers := self.clashes.get((family, type_)):
            names = " and ".join(str(registered.plugin) for registered in providers)
            return Problem(
                "LF-PLUGIN-002",
                f"the {word} {type_!r} is provided by {names}",
                where,
                "uninstall one of them, or name one in LLAMAFARM_DISABLE_PLUGINS",
            )
        if not self.plugins:
            return Problem("LF-PLUGIN-004", "no plugin is installed, not even our own", where, "run: pip install -e .")
        if family == "method" and (reason := self.refused.get(_plain(type_))):
            return Problem("LF-STRATEGY-095", f"the method {type_!r} is not offered: {reason}", where)
        near = nearest(type_, self.family(family))
        failed = "; ".join(f"not loaded: {failure.plugin}: {failure.reason}" for failure in self.failures)
        # Without a near name the type is taken for one of a plugin that did not load: its failure is then the cause.
        id_ = "LF-PLUGIN-001" if failed and not near else "LF-STRATEGY-020"
        message = f"unknown {word} {type_!r}; installed: {one_of(self.family(family)) or 'none'}"
        return Problem(id_, message, where, "; ".join(filter(None, [near, failed])))

    def require(self, family: str, type_: str) -> type[Component[Any]]:
        """The component class.

        Raises:
            PluginError: If it is unknown, broken or ambiguous.
        """
        if problem := self.problem(family, type_):
            raise PluginError([problem])
        return self.family(family)[type_].component

    def loose_keys(self) -> dict[str, str]:
        """Options that may stand among a fine-tuner's own → the method that they put on the stack."""
        methods = {name: found.component for name, found in self.family("method").items()}
        return {
            key: name
            for name, method in methods.items()
            if issubclass(method, Method)
            for key in sorted(method.loose_keys)
        }

    def default_methods(self, tuner: object, given: Any) -> list[dict[str, str]]:
        """What stands for an absent `method` in the configuration `given`: as the fine-tuner says, mostly lora."""
        registered = self.family("fine_tuner").get(str(tuner))
        if registered is None or not issubclass(registered.component, FineTuner):
            return [{"type": "lora"}]
        default = registered.component.default_method(given if isinstance(given, Mapping) else {})
        return [{"type": default}] if default else []

    def run_started(self, run: RunContext) -> None:
        """Tell the observers."""
        self._observe("llamafarm_run_started", run)

    def run_finished(self, run: RunContext, result: TrainingResult) -> None:
        """Tell the observers."""
        self._observe("llamafarm_run_finished", run, result=result)

    def run_failed(self, run: RunContext, error: BaseException) -> None:
        """Tell the observers."""
        self._observe("llamafarm_run_failed", run, error=error)

    def _observe(self, hook: str, run: RunContext, **arguments: Any) -> None:
        """Call each observer alone: one that raises is reported and changes nothing."""
        if self.manager is None:
            return
        caller = getattr(self.manager.hook, hook)
        arguments["run"] = run
        for implementation in caller.get_hookimpls():
            try:
                implementation.function(**{name: arguments[name] for name in implementation.argnames})
            except Exception as error:  # noqa: BLE001  # a plugin's code may raise anything
                run.emit("warning", message=f"observer {implementation.plugin_name}: {type(error).__name__}: {error}")


def load_registry(disabled: Iterable[str] | None = None) -> Registry:
    """Load every plugin that is installed and not disabled.

    Args:
        disabled: Names of entry points or distributions to leave alone, before they are imported; by default those of
            `LLAMAFARM_DISABLE_PLUGINS`, separated by commas.
    """
    if disabled is None:
        disabled = os.environ.get("LLAMAFARM_DISABLE_PLUGINS", "").split(",")
    skip = {name.strip() for name in disabled} - {""}
    builder = _Builder()
    for one in announced():
        if not {one.plugin.name, one.plugin.distribution} & skip:
            builder.load(one)
    return builder.build()


def _plain(name: str) -> str:
    """A name without what people write in one way or another."""
    return name.lower().replace("-", "").replace("_", "")


class _Builder:
    """Collects plugins one at a time."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(hooks)
        self.plugins: list[Plugin] = []
        self.failures: list[Failure] = []
        self.found: dict[tuple[str, str], list[Registered]] = {}
        self.folders: list[tuple[Plugin, Path]] = []
        self.refused: dict[str, str] = {}

    def load(self, one: Announced) -> None:
        """Import one plugin and ask it for its components; whatever it does wrong is recorded."""
        plugin = one.plugin
        self.plugins.append(plugin)
        if one.reason:
            self.failures.append(Failure(plugin, one.reason))
            return
        try:
            module = one.entry_point.load()
            name = self.manager.register(module, name=f"{plugin.distribution}:{plugin.name}")
            self.manager.check_pending()
        except pluggy.PluginValidationError as error:
            reason = str(error).splitlines()[-1].strip()
            if error.plugin is not None and self.manager.is_registered(error.plugin):
                self.manager.unregister(error.plugin)
            self.failures.append(Failure(plugin, f"{reason}{_hook_hint(reason)}"))
            return
        except (Exception, SystemExit) as error:  # noqa: BLE001  # a plugin's module may raise anything
            self.failures.append(Failure(plugin, f"{type(error).__name__}: {error}"))
            return
        assert name is not None
        for family, (hook, base) in FAMILIES.items():
            for component in self._call(plugin, name, hook):
                self._add(plugin, family, base, component)
        self.refused |= {_plain(one): why for one, why in self._call(plugin, name, "llamafarm_refused_methods")}
        self.folders.extend((plugin, Path(folder)) for folder in self._call(plugin, name, "llamafarm_strategies"))

    def _call(self, plugin: Plugin, name: str, hook: str) -> list[Any]:
        """What this plugin's implementation of a registration hook returns."""
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            if implementation.plugin_name == name:
                try:
                    return list(cast("Callable[[], Iterable[Any]]", implementation.function)())
                except Exception as error:  # noqa: BLE001  # a plugin's code may raise anything
                    self.failures.append(Failure(plugin, f"{hook}(): {type(error).__name__}: {error}"))
        return []

    def _add(self, plugin: Plugin, family: str, base: type[Component[Any]], component: Any) -> None:
        if not (isinstance(component, type) and issubclass(component, base) and not isabstract(component)):
            reason = f"{component!r} is no concrete {base.__name__}"
            if isinstance(component, type) and isabstract(component):
                missing = ", ".join(sorted(getattr(component, "__abstractmethods__", ())))
                reason = f"{component.__qualname__} does not define {missing}"
            self.failures.append(Failure(plugin, reason))
            return
        self.found.setdefault((family, component.name), []).append(Registered(component, plugin))

    def build(self) -> Registry:
        components: dict[str, dict[str, Registered]] = {family: {} for family in FAMILIES}
        clashes: dict[tuple[str, str], tuple[Registered, ...]] = {}
        for (family, name), registered in self.found.items():
            if len(registered) == 1:
                components[family][name] = registered[0]
            else:
                clashes[family, name] = tuple(registered)
        return Registry(
            plugins=tuple(self.plugins),
            components=components,
            clashes=clashes,
            failures=tuple(self.failures),
            strategy_folders=tuple(self.folders),
            manager=self.manager,
            refused=self.refused,
        )


def _hook_hint(reason: str) -> str:
    """The nearest hook for a misspelt one."""
    known = [name for name in vars(hooks) if name.startswith("llamafarm_")]
    words = [word.strip("'\"") for word in reason.split() if "llamafarm_" in word]
    hint = nearest(words[0], known) if words else ""
    return f"; {hint}" if hint else ""
