"""`doctor`: what this machine has, what it lacks, and the one command that mends it. Imports no torch."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamafarm import __version__
from llamafarm.cli.figures import gib
from llamafarm.cli.plugins import describe, troubles
from llamafarm.cli.session import Session, session_of
from llamafarm.errors import ExitCode

if TYPE_CHECKING:
    from llamafarm.core.registry import Registry


def doctor(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Check versions, devices, plugins, disk and hub access of this machine; nothing is sent anywhere."""
    from llamafarm.core.registry import load_registry

    session = session_of(context)
    found = examine(load_registry())
    if as_json:
        session.result_json(found)
    else:
        _show(session, found)
    if found["missing"]:
        raise typer.Exit(ExitCode.PLUGIN)


def examine(registry: Registry) -> dict[str, Any]:
    """Everything the check looks at, as plain values."""
    libraries = list(_libraries())
    missing = [one["requirement"] for one in libraries if not one["ok"] and not one["extra"]]
    return {
        "llamafarm": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": libraries,
        "devices": list(_devices(registry)),
        "plugins": describe(registry),
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "hub_token": _has_hub_token(),
        "missing": missing,
        "install": _install_command(missing),
    }


def _libraries() -> list[dict[str, Any]]:
    """The distributions that ours requires, from metadata: version, and whether it is in the range."""
    from packaging.requirements import Requirement

    found = []
    for text in metadata.requires("llamafarm") or ():
        requirement = Requirement(text)
        extra = "" if requirement.marker is None or requirement.marker.evaluate() else _extra(text)
        if extra == "test" or (requirement.marker and not extra and not requirement.marker.evaluate()):
            continue
        version = _version(requirement.name)
        found.append(
            {
                "name": requirement.name,
                "version": version,
                "requirement": f"{requirement.name}{requirement.specifier}",
                "extra": extra,
                "ok": version is not None and requirement.specifier.contains(version, prereleases=True),
            }
        )
    return found


def _extra(text: str) -> str:
    """The extra that a requirement such as `a>=1; extra == "b"` belongs to."""
    return text.rpartition("extra ==")[2].strip(" \"'")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices(registry: Registry) -> list[dict[str, Any]]:
    """The answer of each hardware profile, best first; the first available one is what `auto` takes."""
    profiles = [registered.component for registered in registry.family("hardware").values()]
    found = []
    for profile in sorted(profiles, key=lambda one: -getattr(one, "priority", 0)):
        try:
            probe = profile(profile.Config()).probe()  # type: ignore[attr-defined]  # profiles are HardwareProfiles
        except Exception as error:  # noqa: BLE001  # a plugin's code may raise anything
            found.append({"type": profile.name, "available": False, "reason": f"probe failed: {error}"})
            continue
        device = probe.device
        found.append(
            {
                "type": profile.name,
                "available": device is not None,
                "reason": probe.reason,
                "name": device.name if device else None,
                "count": device.count if device else 0,
                "memory_bytes": device.memory_bytes if device else 0,
            }
        )
    return found


def _has_hub_token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())


def _install_command(missing: list[str]) -> str:
    if not missing:
        return ""
    return f"{sys.executable} -m pip install {' '.join(f'{chr(39)}{one}{chr(39)}' for one in missing)}"


def _show(session: Session, found: dict[str, Any]) -> None:
    _line(session, "llamafarm", f"{found['llamafarm']}, Python {found['python']}, {found['platform']}", ok=True)
    for one in found["libraries"]:
        extra = f"  (optional: pip install 'llamafarm[{one['extra']}]')" if one["extra"] and not one["ok"] else ""
        text = one["version"] or "not installed"
        if one["version"] and not one["ok"]:
            text += f", needed: {one['requirement']}"
        _line(session, one["name"], text + extra, ok=one["ok"] or (None if one["extra"] else False))
    for one in found["devices"]:
        text = one["reason"]
        if one["available"]:
            count = f"{one['count']} x " if one["count"] > 1 else ""
            memory = f", {gib(one['memory_bytes'])}" if one["memory_bytes"] else ""
            text = f"{count}{one['name']}{memory}: {one['reason']}"
        _line(session, one["type"], text, ok=one["available"] or None)
    components = found["plugins"]["components"]
    _line(session, "plugins", f"{len(components)} components", ok=bool(components))
    for line in troubles(found["plugins"]):
        _line(session, "", line, ok=False)
    _line(session, "disk", f"{gib(found['disk_free_bytes'])} free here", ok=True)
    _line(session, "hub", "token found" if found["hub_token"] else "no token (needed for gated models only)", ok=None)
    _advice(session, found)


def _advice(session: Session, found: dict[str, Any]) -> None:
    session.result()
    if found["missing"]:
        session.result("Run this, nothing else:")
        session.result(f"  {found['install']}")
        return
    device = next((one["type"] for one in found["devices"] if one["available"]), "no device")
    session.result(f"Nothing is missing; training uses {device}. Try: llamafarm train -s quickstart")


def _line(session: Session, name: str, text: str, *, ok: bool | None) -> None:
    sign = {True: typer.style("✓", fg="green"), False: typer.style("✗", fg="red"), None: typer.style("·", dim=True)}[ok]
    session.result(f"{sign} {name:<16} {text}")
