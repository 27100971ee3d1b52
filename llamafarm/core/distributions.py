"""What installed distributions announce as plugins, from their metadata alone: nothing is imported."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Final

from llamafarm import __version__

GROUP: Final = "llamafarm"
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_VERSION: Final = re.compile(r"[A-Za-z0-9.!+_-]{1,100}")
_LONGEST: Final = 100


@dataclass(frozen=True, slots=True)
class Plugin:
    """An entry point of the `llamafarm` group, known from metadata alone."""

    name: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} (plugin {self.name!r})"


@dataclass(frozen=True, slots=True)
class Announced:
    """A plugin that is installed.

    Attributes:
        plugin: Its names.
        entry_point: What to import.
        reason: Why it cannot be used; empty if nothing is known to be against it.
    """

    plugin: Plugin
    entry_point: EntryPoint
    reason: str = ""


def announced() -> list[Announced]:
    """All plugins, by distribution and name; of a distribution that is on the path twice the first one counts.

    Metadata is read whatever somebody wants to do: what is broken in one distribution concerns no other.
    """
    found: dict[tuple[str, str, str], Announced] = {}
    for distribution in distributions():
        if entry_points := _entry_points(distribution):
            name, version, reason = _described(distribution)
            plain = re.sub(r"[-_.]+", "-", name).lower()
            for one in entry_points:
                found.setdefault((plain, one.name, one.value), _announced(one, name, version, reason))
    return sorted(found.values(), key=lambda one: (one.plugin.distribution, one.plugin.name))


def _entry_points(distribution: Distribution) -> list[EntryPoint]:
    try:
        return [one for one in distribution.entry_points if one.group == GROUP]
    except Exception:  # noqa: BLE001  # whatever a file holds that is no list of entry points, it names no plugin
        return []


def _described(distribution: Distribution) -> tuple[str, str, str]:
    """Name and version, and why its plugins cannot be used."""
    try:
        name, version = str(distribution.metadata["Name"]), str(distribution.metadata["Version"])
        requires = distribution.requires or []
    except Exception as error:  # noqa: BLE001  # metadata of others
        return "unknown", "0", f"its metadata cannot be read ({type(error).__name__})"
    if not (_NAME.fullmatch(name) and _VERSION.fullmatch(version)):
        return "unknown", "0", "its metadata has no name or version as distributions have"
    return name, version, "" if name == "llamafarm" else _incompatible(requires)


def _announced(entry_point: EntryPoint, distribution: str, version: str, reason: str) -> Announced:
    name = entry_point.name
    if len(name) > _LONGEST or not name.isprintable():
        name, reason = repr(name[:_LONGEST])[1:-1], reason or "its name has control characters or is too long"
    return Announced(Plugin(name, distribution, version), entry_point, reason)


def _incompatible(requires: list[str]) -> str:
    """The distribution's own bound on llamafarm that this version does not meet, or that cannot be understood."""
    for text in requires:
        if not text.lower().startswith("llamafarm"):
            continue
        from packaging.requirements import InvalidRequirement, Requirement

        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            return f"its requirement {text[:_LONGEST]!r} cannot be understood"
        own = requirement.name.lower() == "llamafarm"
        if own and not requirement.specifier.contains(__version__, prereleases=True):
            return f"needs llamafarm{requirement.specifier}, this is {__version__}"
    return ""
