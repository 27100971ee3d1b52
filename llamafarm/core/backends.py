"""Set up, check and remove the environments of fine-tuners that run a program of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llamafarm.api.backend import MARKER, Backend, Comparison, Installed, backend_folder, installed
from llamafarm.api.components import FineTuner
from llamafarm.api.values import Event
from llamafarm.core.load import load
from llamafarm.core.plan import make_plan
from llamafarm.core.registry import Registry
from llamafarm.core.request import Request
from llamafarm.core.reuse import reuse
from llamafarm.core.run import train
from llamafarm.errors import PluginError, StrategyError, nearest, one_of
from llamafarm.files import write_atomically

_SHOWN = 6


def backends(registry: Registry) -> dict[str, Backend]:
    """The backends of all installed fine-tuners by name."""
    found: dict[str, Backend] = {}
    for registered in registry.family("fine_tuner").values():
        component = registered.component
        if issubclass(component, FineTuner):
            found |= {backend.name: backend for backend in component.backends}
    return found


def require_backend(registry: Registry, name: str) -> Backend:
    """The backend of that name.

    Raises:
        PluginError: If there is none.
    """
    known = backends(registry)
    if name not in known:
        message = f"no backend {name!r}; known: {one_of(known) or 'none'}"
        raise PluginError.of("LF-PLUGIN-071", message, hint=nearest(name, known))
    return known[name]


def set_up(backend: Backend, python: Path | None, say: Callable[[str], None]) -> Installed:
    """Make the environment, or take the one that `python` runs in, and check that the program works there.

    Args:
        backend: What to set up.
        python: The interpreter of an environment that exists; None: make one.
        say: Takes a line about each step.

    Raises:
        PluginError: If there is no room, it cannot be installed, or does not work.
    """
    folder = backend_folder(backend.name)
    if python is not None and not python.expanduser().is_file():
        raise PluginError.of("LF-PLUGIN-072", f"no such interpreter: {python}", hint="give the path of a python")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).unlink(missing_ok=True)
    if python is None:
        try:
            interpreter = _made(backend, folder, say)
        except BaseException:
            shutil.rmtree(folder / "venv", ignore_errors=True)
            raise
    else:
        interpreter = python.expanduser().absolute()  # not resolved: a virtual environment's python is a link
    say("checking that it works")
    found = probe(backend, interpreter)
    marker = {"python": str(interpreter), "owned": python is None, **found}
    write_atomically(folder / MARKER, json.dumps(marker, indent=1) + "\n")
    return Installed(interpreter, python is None, found["versions"], found["facts"])


def probe(backend: Backend, python: Path) -> dict[str, Any]:
    """Run the backend's probe.

    Raises:
        PluginError: If it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "facts.json"
        command = [str(python), str(backend.probe), str(answer)]
        finished = subprocess.run(  # noqa: S603  # our script, in the environment that was set up for it
            command, capture_output=True, text=True, check=False, cwd=folder, env=clean_environment()
        )
        try:
            found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            reason = _last_lines(finished.stderr or finished.stdout, 1)
            message = f"{backend.name} does not work in the environment of {python}: {reason}"
            hint = f"run: llamafarm backends setup {backend.name} --overwrite"
            raise PluginError.of("LF-PLUGIN-073", message, hint=hint) from None
    return found


def check(backend: Backend) -> Installed:
    """Probe a backend that is set up.

    Raises:
        PluginError: If it is not, or no longer works.
    """
    found = installed(backend)
    if found is None:
        raise absent(backend)
    answer = probe(backend, found.python)
    return Installed(found.python, found.owned, answer["versions"], answer["facts"])


def absent(backend: Backend) -> PluginError:
    """What to tell when a backend is not set up."""
    hint = f"run: llamafarm backends setup {backend.name}"
    return PluginError.of("LF-PLUGIN-070", f"the backend {backend.name!r} is not set up", hint=hint)


def remove(backend: Backend) -> bool:
    """Delete what `set_up` made; an environment that somebody named is left alone. False when there was nothing."""
    folder = backend_folder(backend.name)
    if not folder.is_dir():
        return False
    shutil.rmtree(folder)
    return True


def compare(backend: Backend, state: Installed, registry: Registry) -> list[Comparison]:
    """What both engines make of the same rows and strategy.

    Raises:
        StrategyError: If there is nothing of ours to compare the backend with.
        LlamaFarmError: If one of them fails.
    """
    if backend.parity is None:
        message = f"{backend.name} has no counterpart of ours to compare it with"
        raise StrategyError.of("LF-TRAIN-100", message, hint="leave --parity out")

    def losses(fine_tuner: Mapping[str, Any], folder: Path, /) -> list[float]:
        folder.mkdir()
        path = folder / "strategy.yaml"
        path.write_text(json.dumps({"fine_tuner": fine_tuner}), encoding="utf-8")  # JSON is YAML
        loaded = load(Request(str(path), sets=(f"output_dir={folder / 'output'}", "hardware=cpu")), registry)
        seen: list[float] = []

        def listen(event: Event) -> None:
            if event.type == "log":
                seen.append(float(event.fields["loss"]))

        train(loaded, make_plan(loaded, registry), registry, listen)
        return seen

    with tempfile.TemporaryDirectory() as folder:
        return list(backend.parity(state, Path(folder), losses))


def clean_environment() -> dict[str, str]:
    """The process environment without what would lead another interpreter to our packages."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP")
    return {name: value for name, value in os.environ.items() if name not in dropped}


def _made(backend: Backend, folder: Path, say: Callable[[str], None]) -> Path:
    """A virtual environment with the backend's packages, and our own torch."""
    if backend.python_below and sys.version_info[:2] >= backend.python_below:
        below, ours = (".".join(map(str, one)) for one in (backend.python_below, sys.version_info[:2]))
        message = f"{backend.name} needs a Python below {below}, and this is {ours}"
        hint = f"run LlamaFarm with an older Python, or name an environment that has {backend.name} by --python"
        raise StrategyError.of("LF-TRAIN-101", message, hint=hint)
    if backend.disk_bytes and (free := shutil.disk_usage(folder).free) < backend.disk_bytes:
        message = f"{backend.name} takes about {backend.disk_bytes >> 30} GiB, and {free >> 30} are free"
        raise PluginError.of("LF-PLUGIN-074", message, where=str(folder), hint="free space, or set LLAMAFARM_HOME")
    venv, log = folder / "venv", folder / "setup.log"
    log.unlink(missing_ok=True)
    shutil.rmtree(venv, ignore_errors=True)
    uv = shutil.which("uv")
    say(f"making a virtual environment in {venv}")
    _run([uv, "venv", "--python", sys.executable, str(venv)] if uv else [sys.executable, "-m", "venv", str(venv)], log)
    python = venv / "bin" / "python"
    install = [uv, "pip", "install", "--python", str(python)] if uv else [str(python), "-m", "pip", "install"]
    _put_torch(backend, python, install, log, say)
    say("installing its packages, in fixed versions; this takes some minutes")
    _run([*install, "--no-deps", "-r", str(backend.requirements)], log)
    _put_stubs(backend, folder, python)
    return python


def _put_torch(backend: Backend, python: Path, install: Sequence[str], log: Path, say: Callable[[str], None]) -> None:
    """Our own torch, the very files: an index may have a build for other devices under the same version."""
    lines = backend.requirements.read_text(encoding="utf-8").splitlines()
    pinned = [line.partition("==")[0] for line in lines if "==" in line]
    if found := reuse("torch", _site(python), pinned):
        say(f"{found} is that of LlamaFarm")
        return
    torch = f"torch=={version('torch').partition('+')[0]}"
    say(f"installing {torch}, the version that LlamaFarm runs with")
    _run([*install, torch], log)


def _site(python: Path) -> Path:
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    answer = subprocess.run(ask, capture_output=True, text=True, check=True, env=clean_environment())  # noqa: S603  # ours
    return Path(answer.stdout.strip())


def _put_stubs(backend: Backend, folder: Path, python: Path) -> None:
    if not backend.stubs:
        return
    stubs = folder / "stubs"
    for name, content in backend.stubs.items():
        path = stubs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    (_site(python) / "llamafarm_stubs.pth").write_text(f"{stubs}\n", encoding="utf-8")


def _run(command: Sequence[str], log: Path) -> None:
    """Run a step of the set-up; what it says goes to `log`."""
    with log.open("a", encoding="utf-8") as out:
        out.write(f"$ {' '.join(command)}\n")
        out.flush()
        finished = subprocess.run(  # noqa: S603  # made by us
            command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False,
            env=clean_environment(),
        )  # fmt: skip
    if finished.returncode:
        text = _last_lines(log.read_text(encoding="utf-8", errors="replace"), _SHOWN)
        message = f"the set-up failed (exit code {finished.returncode}): {text}"
        raise PluginError.of("LF-PLUGIN-072", message, where=str(log), hint="mend that, then run the command again")


def _last_lines(text: str, count: int) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("[notice]")]
    return " | ".join(lines[-count:]) or "it said nothing"
