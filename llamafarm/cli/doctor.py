"""`doctor`: what this machine has, what it lacks, and the one command that mends it. Imports no torch."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamafarm import __version__
from llamafarm.cli.figures import gib, number
from llamafarm.cli.plugins import describe, troubles
from llamafarm.cli.probe import OVERFIT_STEPS, STEPS, Trial, Verdict, carry_out
from llamafarm.cli.progress import show_progress
from llamafarm.cli.session import Session, session_of
from llamafarm.errors import ExitCode, UsageError
from llamafarm.models import kernels

if TYPE_CHECKING:
    from llamafarm.core.registry import Registry


_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "LLAMAFARM_DISABLE_PLUGINS",
    "LLAMAFARM_HOME",
    "LLAMAFARM_LEAN_IMPORTS",
    "OMP_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ENABLE_MPS_FALLBACK",
)
"""Environment variables that change how training goes; none holds a secret."""


def doctor(
    context: typer.Context,
    strategy: Annotated[
        str | None, typer.Argument(metavar="[STRATEGY]", help="Also train it for a few steps, in a temporary folder.")
    ] = None,
    strategy_option: Annotated[
        str | None,
        typer.Option("--strategy", "-s", "--strategy-file", "--config", "-c", help="The same as STRATEGY."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps to try; 10, or 100 to overfit.")] = None,
    overfit: Annotated[
        bool, typer.Option("--overfit", help="Learn 8 rows by heart: the loss must come near 0.")
    ] = False,
    min_grad_norm: Annotated[float, typer.Option("--min-grad-norm", help="Smallest gradient norm not noted.")] = 0.1,
    max_grad_norm: Annotated[float, typer.Option("--max-grad-norm", help="Largest gradient norm not noted.")] = 10.0,
    sets: Annotated[list[str] | None, typer.Option("--set", help="An override a.b=c, as with train.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check versions, devices, kernels, plugins, disk and hub access of this machine; nothing is sent anywhere.

    With a strategy, its first steps are tried too: are loss and gradient finite, in range, and does the loss fall?
    """
    from llamafarm.core.registry import load_registry

    session = session_of(context)
    if strategy and strategy_option and strategy != strategy_option:
        raise UsageError.of("LF-USAGE-004", f"{strategy} and {strategy_option} are two strategies", hint="name one")
    strategy = strategy or strategy_option
    if strategy is None and (steps or overfit or sets):
        hint = "give STRATEGY, a name or a file"
        raise UsageError.of("LF-USAGE-006", "no strategy is named to try", where=context.command_path, hint=hint)
    registry = load_registry()
    found = examine(registry)
    if not as_json:
        _show(session, found)
    if strategy is not None and not found["missing"]:
        tried = steps or (OVERFIT_STEPS if overfit else STEPS)
        trial = Trial(strategy, tuple(sets or ()), tried, overfit, (min_grad_norm, max_grad_norm))
        with show_progress(session, quiet=as_json) as listener:
            verdict = carry_out(trial, registry, listener)
        found["trial"] = dataclasses.asdict(trial) | dataclasses.asdict(verdict) | {"ok": not verdict.failures}
        if not as_json:
            _show_trial(session, trial, verdict)
    elif not as_json:
        _advice(session, found)
    if as_json:
        session.result_json(found)
    if found["missing"]:
        raise typer.Exit(ExitCode.PLUGIN)
    if not found.get("trial", {"ok": True})["ok"]:
        raise typer.Exit(ExitCode.NUMERIC)


def examine(registry: Registry) -> dict[str, Any]:
    """Everything the check looks at, as plain values."""
    libraries = list(_libraries())
    missing = [one["requirement"] for one in libraries if not one["ok"] and not one["extra"]]
    devices = list(_devices(registry))
    return {
        "llamafarm": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "environment": _environment(),
        "versions": _versions(devices),
        "libraries": libraries,
        "devices": devices,
        "kernels": {name: kernels.installed(name) for name in kernels.PACKAGES} | {"c++": kernels.cpp_compiler()},
        "parts": _parts(registry),
        "plugins": describe(registry),
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "hub_token": _has_hub_token(),
        "missing": missing,
        "install": _install_command(missing),
    }


def _environment() -> dict[str, Any]:
    """The interpreter, and the variables that change how training goes."""
    virtual = sys.prefix != sys.base_prefix
    variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    return {"executable": sys.executable, "virtual": virtual, "variables": variables}


def _versions(devices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What to put into a report of numbers that went wrong; None where the device has no such thing."""
    used = next((one for one in devices if one["available"]), None)
    details = used["details"] if used else {}
    named = {name: _version(name) for name in ("torch", "transformers", "peft", "accelerate")}
    told = {name: details.get(name) or None for name in ("cuda", "cudnn", "driver", "compute_capability", "generation")}
    gpu = used["name"] if used and used["type"] != "cpu" else None
    return named | told | {"gpu": gpu, "bf16": details.get("bf16")}


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
                "details": dict(device.details) if device else {},
            }
        )
    return found


def _parts(registry: Registry) -> list[dict[str, Any]]:
    """What fine-tuners tell of themselves."""
    found = []
    for registered in registry.family("fine_tuner").values():
        try:
            told = registered.component.installed()  # type: ignore[attr-defined]  # fine-tuners are FineTuners
        except Exception as error:  # noqa: BLE001  # a plugin's code may raise anything
            told = {registered.component.name: (False, f"does not tell its parts: {error}")}
        found += [{"name": name, "there": there, "told": text} for name, (there, text) in told.items()]
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
    for name, installed in found["kernels"].items():
        use = kernels.PACKAGES[name][1] if name in kernels.PACKAGES else "torch_compile on CPUs"
        _line(session, name, f"{installed or 'not installed'}  (for {use})", ok=bool(installed) or None)
    for one in found["parts"]:
        _line(session, one["name"], one["told"], ok=one["there"] or None)
    components = found["plugins"]["components"]
    _line(session, "plugins", f"{len(components)} components", ok=bool(components))
    for line in troubles(found["plugins"]):
        _line(session, "", line, ok=False)
    _line(session, "disk", f"{gib(found['disk_free_bytes'])} free here", ok=True)
    _line(session, "hub", "token found" if found["hub_token"] else "no token (needed for gated models only)", ok=None)
    for name, value in found["environment"]["variables"].items():
        _line(session, name, value, ok=None)


def _advice(session: Session, found: dict[str, Any]) -> None:
    session.result()
    if found["missing"]:
        session.result("Run this, nothing else:")
        session.result(f"  {found['install']}")
        return
    device = next((one["type"] for one in found["devices"] if one["available"]), "no device")
    session.result(f"Nothing is missing; training uses {device}. Try: llamafarm train -s quickstart")


def _show_trial(session: Session, trial: Trial, verdict: Verdict) -> None:
    session.result()
    if verdict.losses:
        low, high = min(verdict.grad_norms), max(verdict.grad_norms)
        first, last = number(verdict.losses[0]), number(verdict.losses[-1])
        text = f"{len(verdict.losses)} of {trial.steps} steps: loss {first} → {last}"
        _line(
            session, trial.strategy, f"{text}, gradient norm {number(low)} to {number(high)}", ok=not verdict.failures
        )
    for text in verdict.failures:
        _line(session, "", text, ok=False)
    for text in verdict.notes:
        _line(session, "", text, ok=None)
    if verdict.remedies:
        session.result("Try, one after the other:")
        for text in verdict.remedies:
            session.result(f"  {text}")


def _line(session: Session, name: str, text: str, *, ok: bool | None) -> None:
    sign = {True: typer.style("✓", fg="green"), False: typer.style("✗", fg="red"), None: typer.style("·", dim=True)}[ok]
    session.result(f"{sign} {name:<16} {text}")
