"""`plugins: [name>=1.2]` in a strategy: what is not installed, does not match, or failed to load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafarm.core.layers import Layer
from llamafarm.core.registry import Registry
from llamafarm.errors import Problem, nearest

if TYPE_CHECKING:
    from packaging.requirements import Requirement


def unmet_requirements(merged: Layer, registry: Registry) -> list[Problem]:
    """Problems with the plugins that a strategy says it needs."""
    required = merged.values.get("plugins")
    if not required or not isinstance(required, list):
        return []
    from packaging.requirements import InvalidRequirement, Requirement

    problems = []
    for index, text in enumerate(required):
        origin = merged.origin(("plugins", index))
        where = origin.place if origin else ""
        try:
            problems.extend(_unmet(Requirement(str(text)), registry, where))
        except InvalidRequirement:
            hint = "write it as `llamafarm-foo>=1.2`"
            problems.append(Problem("LF-PLUGIN-005", f"{text!r} is no requirement", where, hint))
    return problems


def _unmet(requirement: Requirement, registry: Registry, where: str) -> list[Problem]:
    name, install = requirement.name, f"run: pip install '{requirement}'"
    found = [plugin for plugin in registry.plugins if plugin.distribution.lower() == name.lower()]
    if not found:
        near = nearest(name, {plugin.distribution for plugin in registry.plugins})
        hint = f"{install} ({near})" if near else install
        return [Problem("LF-PLUGIN-003", f"the plugin {name!r} is not installed", where, hint)]
    if not requirement.specifier.contains(found[0].version, prereleases=True):
        message = f"{name} {found[0].version} is installed, the strategy needs {requirement}"
        return [Problem("LF-PLUGIN-003", message, where, install)]
    return [
        Problem("LF-PLUGIN-001", f"{failure.plugin} cannot be loaded: {failure.reason}", where)
        for failure in registry.failures
        if failure.plugin.distribution.lower() == name.lower()
    ]
