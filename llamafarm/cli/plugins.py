"""`plugins list`: what is installed, and what could not be loaded."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llamafarm.cli.session import session_of
from llamafarm.cli.tables import show_table


def list_(context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List components and where they come from; then what failed to load, and names that clash."""
    from llamafarm.core.registry import FAMILIES, FAMILY_WORDS, load_registry

    session = session_of(context)
    registry = load_registry()
    found = describe(registry)
    if as_json:
        session.result_json(found)
        return
    order = list(FAMILIES)
    rows = [
        [FAMILY_WORDS[one["family"]], one["type"], one["distribution"], one["version"], one["plugin"]]
        for one in sorted(found["components"], key=lambda one: (order.index(one["family"]), one["type"]))
    ]
    show_table(session, ["FAMILY", "TYPE", "FROM", "VERSION", "PLUGIN"], rows)
    for line in troubles(found):
        session.warning(line)


def describe(registry: Any) -> dict[str, Any]:
    """Components, failures and clashes as plain values."""
    return {
        "components": [
            {"family": family, "type": type_, **_provider(registered.plugin)}
            for family, members in registry.components.items()
            for type_, registered in members.items()
        ],
        "failures": [{**_provider(failure.plugin), "reason": failure.reason} for failure in registry.failures],
        "clashes": [
            {"family": family, "type": type_, "providers": [_provider(one.plugin) for one in registered]}
            for (family, type_), registered in registry.clashes.items()
        ],
    }


def troubles(found: dict[str, Any]) -> list[str]:
    """A line for each plugin that did not load and each name that clashes."""
    lines = [
        f"{one['distribution']} {one['version']} (plugin {one['plugin']!r}) did not load: {one['reason']}"
        for one in found["failures"]
    ]
    for clash in found["clashes"]:
        names = " and ".join(f"{one['distribution']} (plugin {one['plugin']!r})" for one in clash["providers"])
        lines.append(f"{clash['family']} {clash['type']!r} is provided by {names}: neither can be used")
    return lines


def _provider(plugin: Any) -> dict[str, str]:
    return {"plugin": plugin.name, "distribution": plugin.distribution, "version": plugin.version}
