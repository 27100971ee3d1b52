"""No component of ours without its contract suite."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from llamafarm.core.registry import load_registry
from llamafarm.testing.contracts import ComponentContract


def suites() -> Iterator[type[ComponentContract]]:
    for path in Path(__file__).parent.glob("test_*.py"):
        if path.name != Path(__file__).name:
            spec = importlib.util.spec_from_file_location(f"contracts_{path.stem}", path)
            assert spec
            assert spec.loader
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            yield from (value for name, value in vars(module).items() if name.startswith("Test"))


def test_every_component_of_ours_has_its_suite() -> None:
    registry = load_registry()
    ours = {
        registered.component
        for members in registry.components.values()
        for registered in members.values()
        if registered.plugin.distribution == "llamafarm"
    }
    assert ours
    assert {suite.component for suite in suites()} == ours


def test_nothing_of_ours_fails_to_load() -> None:
    assert [failure for failure in load_registry().failures if failure.plugin.distribution == "llamafarm"] == []
