"""Look at runs: what they are, whether they can go on, and where two of them part."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llamafarm.core.contract import compare
from llamafarm.core.lock import live_owner
from llamafarm.core.record import manifest_of, settings_of
from llamafarm.core.resume import find_run, runs_below
from llamafarm.models.checkpoint import damage, file_digest, read_manifest

_PLACES: Final = frozenset(
    {"output_dir", "overwrite_output_dir", "training.resume_from_checkpoint", "training.push_to_hub"}
)
_FIGURES: Final = ("loss", "lr", "grad_norm", "eval_loss", "eval_token_accuracy")


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run at a glance.

    Attributes:
        folder: Its directory.
        manifest: What it says about itself.
        status: `running`, `completed`, `interrupted`, `failed`, or `killed`.
        step: The last step that its log knows; 0 before the first.
        loss: The last loss there.
    """

    folder: Path
    manifest: Mapping[str, Any]
    status: str
    step: int
    loss: float | None


@dataclass(frozen=True, slots=True)
class Part:
    """Something in which two runs differ.

    Attributes:
        kind: `configuration`, `data`, `versions`, `device`, `step` or `weights`.
        subject: The setting, the library, the step.
        one: What it is in the first run.
        other: What it is in the second.
    """

    kind: str
    subject: str
    one: Any
    other: Any


def list_runs(root: Path) -> list[RunSummary]:
    """The runs in a folder and a few levels below, the last one first."""
    found = [summary(folder, manifest) for folder, manifest in runs_below(root)]
    return sorted(found, key=lambda run: str(run.manifest.get("started", "")), reverse=True)


def summary(folder: Path, manifest: Mapping[str, Any] | None = None) -> RunSummary:
    """A run at a glance."""
    known = manifest if manifest is not None else manifest_of(folder) or {}
    status = str(known.get("status", "unknown"))
    if status == "running" and live_owner(folder) is None:
        status = "killed"
    steps = [line for line in log_lines(folder) if "loss" in line]
    return RunSummary(
        folder,
        known,
        status,
        int(steps[-1].get("current_steps", 0)) if steps else 0,
        steps[-1].get("loss") if steps else None,
    )


def checkpoints(folder: Path) -> list[tuple[str, int | None, str]]:
    """Each checkpoint of a run: its name, its step, and what is wrong with it (empty: nothing)."""
    found = []
    for path in folder.glob("checkpoint-*"):
        manifest = read_manifest(path)
        found.append((path.name, manifest.step if manifest else None, damage(path) or ""))
    return sorted(found, key=lambda item: (item[1] is None, item[1] or 0, item[0]))


def differences(one: Path, other: Path) -> Iterator[Part]:
    """Where two runs part, first things first: configuration, data, versions, device, then the first step.

    Figures of steps are compared to the last bit.
    """
    for found in compare(settings_of(one) or {}, settings_of(other) or {}):
        if found.key not in _PLACES:
            yield Part("configuration", found.key, found.before, found.after)
    first, second = manifest_of(one) or {}, manifest_of(other) or {}
    if first.get("dataset_digest") != second.get("dataset_digest"):
        yield Part(
            "data", "digest of the rows and their order", first.get("dataset_digest"), second.get("dataset_digest")
        )
    for kind in ("versions", "plugins", "device"):
        before, after = dict(first.get(kind) or {}), dict(second.get(kind) or {})
        for name in sorted({*before, *after}):
            if before.get(name) != after.get(name):
                yield Part("versions" if kind == "plugins" else kind, name, before.get(name), after.get(name))
    yield from _first_step(one, other)
    yield from _weights(one, other)


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's trainer_log.jsonl that are whole."""
    lines = []
    try:
        text = (folder / "trainer_log.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue  # a run that is writing now
        if isinstance(found, dict):
            lines.append(found)
    return lines


def run_folder(target: str) -> Path:
    """The directory of a run by its name on the command line.

    Raises:
        RunDirectoryError: If there is none.
    """
    return find_run(target).folder


def _first_step(one: Path, other: Path) -> Iterator[Part]:
    first, second = _figures(one), _figures(other)
    for key in sorted(first.keys() & second.keys()):
        if first[key] != second[key]:
            step, figure = key
            yield Part("step", f"step {step}, {figure}", first[key], second[key])
            return


def _figures(folder: Path) -> dict[tuple[int, str], float]:
    return {
        (int(line["current_steps"]), name): line[name]
        for line in log_lines(folder)
        for name in _FIGURES
        if name in line and "current_steps" in line
    }


def _weights(one: Path, other: Path) -> Iterator[Part]:
    for name in sorted({file.name for folder in (one, other) for file in folder.glob("*.safetensors")}):
        digests = [file_digest(folder / name) if (folder / name).is_file() else None for folder in (one, other)]
        if digests[0] != digests[1]:
            yield Part("weights", name, digests[0], digests[1])
