"""Plugins are written against these hooks: a changed name or argument breaks them, so it must be changed here too."""

from __future__ import annotations

import inspect

import pluggy
import pytest

from llamafarm.api import hooks

FROZEN = {
    "llamafarm_fine_tuners": (),
    "llamafarm_methods": (),
    "llamafarm_refused_methods": (),
    "llamafarm_hardware_profiles": (),
    "llamafarm_data_splitters": (),
    "llamafarm_strategies": (),
    "llamafarm_run_started": ("run",),
    "llamafarm_run_finished": ("run", "result"),
    "llamafarm_run_failed": ("run", "error"),
}


def test_the_hooks_are_the_frozen_ones() -> None:
    manager = pluggy.PluginManager("llamafarm")
    manager.add_hookspecs(hooks)
    found = {
        name: tuple(inspect.signature(getattr(hooks, name)).parameters)
        for name in vars(manager.hook)
        if name.startswith("llamafarm_")
    }
    assert found == FROZEN


@pytest.mark.parametrize("name", FROZEN)
def test_each_hook_says_what_it_is_for(name: str) -> None:
    hook = getattr(hooks, name)
    assert (inspect.getdoc(hook) or "").endswith(".")
    assert set(hook.__annotations__) == {*FROZEN[name], "return"}


@pytest.mark.parametrize("name", FROZEN)
def test_each_hook_is_in_the_author_guide(name: str, root) -> None:
    assert f"`{name}" in (root / "docs" / "plugins.md").read_text(encoding="utf-8")
