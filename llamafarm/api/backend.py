"""A program that a fine-tuner runs in an environment of its own, because its requirements exclude ours.

A fine-tuner says here what is to be set up (`FineTuner.backends`); `llamafarm backends` does it for any of them, and
the fine-tuner asks `installed` for the interpreter to run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

MARKER = "backend.json"
"""The file that is written last: without it there is no backend."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One thing that both engines computed.

    Attributes:
        subject: What was compared.
        ours: Of the engine in this process.
        theirs: Of the backend.
        same: Whether they agree.
        note: Within what, or what differs.
    """

    subject: str
    ours: str
    theirs: str
    same: bool
    note: str = ""


class TrainStrategy(Protocol):
    """Train the strategy with this `fine_tuner:` block in a folder, and return the losses that it logs."""

    def __call__(self, fine_tuner: Mapping[str, Any], folder: Path, /) -> Sequence[float]: ...


@dataclass(frozen=True, slots=True)
class Installed:
    """A backend that is set up.

    Attributes:
        python: Its interpreter.
        owned: Whether LlamaFarm made the environment (else it is one that somebody named).
        versions: Of its packages that matter; the program's is the first.
        facts: What its probe found besides: plain JSON values.
    """

    python: Path
    owned: bool
    versions: Mapping[str, str]
    facts: Mapping[str, Any]

    @property
    def version(self) -> str:
        """The program's version; empty if its probe told none."""
        return next(iter(self.versions.values()), "")


@dataclass(frozen=True, slots=True)
class Backend:
    """What to set up.

    Attributes:
        name: By which the command line knows it.
        summary: One line about it.
        requirements: A file of exact versions, complete: nothing else is installed but the
            host's own torch.
        probe: A script that the environment's Python runs with the path of a JSON file to write: `versions` and
            `facts`. It fails where the program would.
        stubs: Files, path → content, put on that environment's import path: what the program imports and needs not.
        disk_bytes: What it takes, about.
        parity: Compares both engines; gets the backend, a folder to work in, and what trains a strategy there.
        python_below: The first Python, such as (3, 13), that its packages do not run on.
    """

    name: str
    summary: str
    requirements: Path
    probe: Path
    stubs: Mapping[str, str] = field(default_factory=dict)
    disk_bytes: int = 0
    parity: Callable[[Installed, Path, TrainStrategy], Sequence[Comparison]] | None = None
    python_below: tuple[int, int] | None = None


def backend_folder(name: str) -> Path:
    """Where a backend is kept: below `LLAMAFARM_HOME`, else in the platform's folder for a user's data."""
    if given := os.environ.get("LLAMAFARM_HOME"):
        return Path(given) / "backends" / name
    from platformdirs import user_data_path

    return user_data_path("llamafarm") / "backends" / name


def installed(backend: Backend) -> Installed | None:
    """The backend as it was set up; None when it is not, or its interpreter is gone."""
    try:
        marker = json.loads((backend_folder(backend.name) / MARKER).read_text(encoding="utf-8"))
        found = Installed(Path(marker["python"]), bool(marker["owned"]), marker["versions"], marker["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.python.is_file() else None
