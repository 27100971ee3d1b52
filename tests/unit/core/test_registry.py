from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint

import pytest
from core_test_components import Dora, Lora
from core_test_components import registry as make_registry

import llamafarm.core.distributions as module
from llamafarm.api import hookimpl
from llamafarm.core.distributions import Plugin
from llamafarm.core.load import load
from llamafarm.core.registry import Failure, Registered, load_registry
from llamafarm.core.request import Request
from llamafarm.errors import PluginError


class Distribution:
    """What importlib.metadata knows of an installed distribution."""

    def __init__(self, name, version="1.0", requires=()):
        self.metadata, self.requires = {"Name": name, "Version": version}, list(requires)
        self.name, self.entry_points = name, []


def entry_point(name, distribution, **functions):
    """An entry point whose module holds these functions."""
    made = types.ModuleType(f"made_{distribution.name}_{name}".replace("-", "_"))
    for key, function in functions.items():
        setattr(made, key, function)
    sys.modules[made.__name__] = made
    point = EntryPoint(name, made.__name__, "llamafarm")
    vars(point).update(dist=distribution)
    return point


@pytest.fixture
def installed(monkeypatch):
    """Replace the installed entry points."""

    def install(*points):
        found = {id(point.dist): point.dist for point in points}
        for distribution in found.values():
            distribution.entry_points = [point for point in points if point.dist is distribution]
        monkeypatch.setattr(module, "distributions", found.values)

    return install


def methods(*classes):
    @hookimpl
    def llamafarm_methods():
        return classes

    return llamafarm_methods


def test_components_and_where_they_come_from(installed):
    installed(entry_point("a", Distribution("dist-a", "2.1"), llamafarm_methods=methods(Lora)))
    registry = load_registry(())
    assert registry.family("method")["lora"] == Registered(Lora, Plugin("a", "dist-a", "2.1"))
    assert registry.failures == ()


def test_a_broken_plugin_is_recorded_and_matters_to_nobody_else(installed):
    def broken():
        raise RuntimeError("boom")

    missing = EntryPoint("gone", "no_such_module_of_ours", "llamafarm")
    vars(missing).update(dist=Distribution("dist-gone"))
    installed(
        missing,
        entry_point("raises", Distribution("dist-raises"), llamafarm_methods=hookimpl(broken)),
        entry_point("good", Distribution("dist-good"), llamafarm_methods=methods(Lora)),
    )
    registry = load_registry(())
    assert set(registry.family("method")) == {"lora"}
    reasons = {failure.plugin.distribution: failure.reason for failure in registry.failures}
    assert "No module named 'no_such_module_of_ours'" in reasons["dist-gone"]


def test_a_hook_that_raises_is_recorded(installed):
    @hookimpl
    def llamafarm_methods():
        raise RuntimeError("boom")

    installed(entry_point("raises", Distribution("d"), llamafarm_methods=llamafarm_methods))
    (failure,) = load_registry(()).failures
    assert failure.reason == "llamafarm_methods(): RuntimeError: boom"


def test_a_misspelt_hook_is_found(installed):
    @hookimpl
    def llamafarm_metods():
        return []

    installed(
        entry_point("typo", Distribution("d"), llamafarm_metods=llamafarm_metods),
        entry_point("good", Distribution("e"), llamafarm_methods=methods(Lora)),
    )
    registry = load_registry(())
    assert "did you mean 'llamafarm_methods'?" in registry.failures[0].reason
    assert set(registry.family("method")) == {"lora"}


def test_what_is_no_component_is_recorded(installed):
    class Abstract(Lora.__mro__[1]):
        pass

    installed(entry_point("odd", Distribution("d"), llamafarm_methods=methods(int, Abstract, Lora)))
    registry = load_registry(())
    assert "<class 'int'> is no concrete Method" in registry.failures[0].reason
    assert "does not define adapter, apply" in registry.failures[1].reason
    assert set(registry.family("method")) == {"lora"}


def test_a_clash_names_both_and_stops_only_who_asks(installed, write):
    installed(
        entry_point("a", Distribution("dist-a", "1.0"), llamafarm_methods=methods(Lora)),
        entry_point("b", Distribution("dist-b", "3.0"), llamafarm_methods=methods(Lora, Dora)),
    )
    registry = load_registry(())
    assert set(registry.family("method")) == {"dora"}
    with pytest.raises(PluginError, match=r"dist-a 1\.0 .* and dist-b 3\.0"):
        registry.require("method", "lora")
    registry.require("method", "dora")


def test_disabled_plugins_are_not_imported(installed, monkeypatch):
    point = EntryPoint("gone", "no_such_module_of_ours", "llamafarm")
    vars(point).update(dist=Distribution("dist-gone"))
    installed(point)
    monkeypatch.setenv("LLAMAFARM_DISABLE_PLUGINS", "x, dist-gone")
    assert load_registry().plugins == ()


def test_a_plugin_for_another_version_is_not_imported(installed):
    point = EntryPoint("old", "no_such_module_of_ours", "llamafarm")
    vars(point).update(dist=Distribution("dist-old", requires=["numpy", "llamafarm>=99"]))
    installed(point)
    (failure,) = load_registry(()).failures
    assert failure.reason.startswith("needs llamafarm>=99, this is ")


def test_asking_for_what_a_broken_plugin_may_provide_is_a_plugin_error(installed, write):
    broken = Failure(Plugin("unsloth", "llamafarm-unsloth", "1.2"), "ModuleNotFoundError: No module named 'x'")
    registry = make_registry(failures=(broken,))
    name = write("fine_tuner: {config: {method: zzz}}")
    with pytest.raises(PluginError, match=r"not loaded: llamafarm-unsloth 1\.2 .* ModuleNotFoundError"):
        load(Request(name), registry)
    load(Request(write("name: unaffected")), registry)
