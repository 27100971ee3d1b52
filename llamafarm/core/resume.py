"""Find a run that was interrupted, and decide whether it can go on with a configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from llamafarm.api.values import ResumePoint
from llamafarm.core.contract import Change, compare, settings
from llamafarm.core.load import Loaded
from llamafarm.core.record import OWN, is_run, manifest_of, settings_of
from llamafarm.core.registry import Registry
from llamafarm.errors import Problem, RunDirectoryError, StrategyError

LAST: Final = "last"
_CHECKPOINT: Final = re.compile(r"checkpoint-\d+")
_DEPTH: Final = 3


@dataclass(frozen=True, slots=True)
class Resumption:
    """A run that is to go on.

    Attributes:
        folder: Its directory.
        point: Where it goes on.
    """

    folder: Path
    point: ResumePoint

    @property
    def strategy(self) -> str:
        """Its own configuration, as a strategy.

        Raises:
            RunDirectoryError: If it is lost.
        """
        path = self.folder / OWN / "resolved.yaml"
        if not path.is_file():
            message = "the run's own strategy is lost"
            raise RunDirectoryError.of("LF-RUN-117", message, where=str(path), hint="give it by --strategy")
        return str(path)


def find_run(target: str, *, allow_changes: bool = False) -> Resumption:
    """Find a run.

    Args:
        target: Its directory, one of its checkpoints, or `last`: the one below the working folder that began last.
        allow_changes: Whether it may go on with changes that make its end another.

    Raises:
        RunDirectoryError: If there is no such run, or nothing to go on with.
    """
    if target == LAST:
        return Resumption(_last(), ResumePoint(allow_changes=allow_changes))
    path = Path(target).expanduser()
    real = Path(os.path.realpath(path))  # which does not mind a link that leads to itself
    checkpoint = path if _CHECKPOINT.fullmatch(real.name) and not (path / OWN).is_dir() else None
    folder = real.parent if checkpoint else path
    if checkpoint and not path.is_absolute():
        folder = Path(os.path.relpath(folder))
    if not is_run(folder):
        what = "is no run of ours" if folder.is_dir() else "does not exist"
        raise RunDirectoryError.of("LF-RUN-011", f"{target} {what}", hint=_known())
    if checkpoint and not checkpoint.is_dir():
        names = ", ".join(sorted(entry.name for entry in folder.glob("checkpoint-*"))) or "none"
        raise RunDirectoryError.of("LF-RUN-012", f"the run has no {checkpoint.name}", hint=f"it has: {names}")
    return Resumption(folder, ResumePoint(folder / checkpoint.name if checkpoint else None, allow_changes))


def asked_for(loaded: Loaded, *, allow_changes: bool = False) -> Resumption | None:
    """What `training.resume_from_checkpoint` asks for; None for a new run.

    `true` goes on if there is a run in `output_dir`, and begins one if not: the same command can be given again and
    again.

    Raises:
        RunDirectoryError: If it names a run or checkpoint that is not there, or not in `output_dir`.
    """
    config = loaded.tuner_config
    wanted = config.training.resume_from_checkpoint
    folder = Path(config.output_dir)
    if not wanted or (wanted is True and not is_run(folder)):
        return None
    found = find_run(config.output_dir if wanted is True else str(wanted), allow_changes=allow_changes)
    if os.path.realpath(found.folder) != os.path.realpath(folder):
        message = f"training.resume_from_checkpoint names a run in {found.folder}, but output_dir is {folder}"
        raise RunDirectoryError.of("LF-RUN-014", message, hint="give the same folder twice: a run goes on where it is")
    return found


def checked(found: Resumption, loaded: Loaded, registry: Registry) -> Resumption:
    """The resumption with the changes that were accepted.

    Raises:
        LlamaFarmError: If the run is finished, or the configuration is not one that it can go on with.
    """
    manifest, before = manifest_of(found.folder), settings_of(found.folder)
    if before is None:
        accepted = (_unknown_settings(found), *_plugins(manifest, registry))
        return replace(found, point=replace(found.point, changes=accepted))
    differences = compare(before, _plain(settings(loaded)))
    changed = [item for item in differences if item.change is not Change.FREE]
    known = manifest or {}
    if known.get("status") == "completed" and not changed:
        hint = "to train on, raise training.max_steps or num_epochs, with --allow-changes"
        message = f"the run {known.get('run_id')} is finished: there is nothing to resume"
        raise RunDirectoryError.of("LF-RUN-013", message, where=str(found.folder), hint=hint)
    problems = [
        Problem("LF-TRAIN-053", f"{item}: a run cannot go on with that", hint="start a new run, or take it back")
        for item in changed
        if item.change is Change.NEVER
    ]
    if not found.point.allow_changes:
        problems += [
            Problem("LF-TRAIN-054", str(item), hint="add --allow-changes to go on all the same, not exactly")
            for item in changed
            if item.change is Change.FLAG
        ]
    if problems:
        raise StrategyError(problems)
    accepted = (*map(str, changed), *_plugins(manifest, registry))
    return replace(found, point=replace(found.point, changes=accepted))


def runs_below(root: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The runs in a folder and a few levels below, with their manifests."""
    for path, folders, _ in os.walk(root):
        folder = Path(path)
        depth = len(folder.relative_to(root).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and depth < _DEPTH)
        manifest = manifest_of(folder)
        if manifest is not None:
            folders.clear()  # a run holds no other
            yield folder, manifest


def _last() -> Path:
    found = [(str(manifest.get("started", "")), folder) for folder, manifest in runs_below(Path())]
    if not found:
        raise RunDirectoryError.of(
            "LF-RUN-011", "there is no run below the working folder", hint="give --resume the run's folder"
        )
    return max(found)[1]


def _known() -> str:
    names = [str(folder) for folder, _ in runs_below(Path())][:8]
    return f"runs here: {', '.join(names)}" if names else "give the folder that a run wrote into"


def _unknown_settings(found: Resumption) -> str:
    """What a run without a record of its settings goes on with, and so is not exact.

    Raises:
        RunDirectoryError: If it is not to go on with changes.
    """
    lost = "the record of the run's settings is lost or damaged: whether they changed cannot be told"
    if not found.point.allow_changes:
        hint = "add --allow-changes to go on with the settings that are given now, not exactly"
        raise RunDirectoryError.of("LF-RUN-115", lost, where=str(found.folder / OWN / "config.json"), hint=hint)
    return lost


def _plugins(manifest: Mapping[str, Any] | None, registry: Registry) -> list[str]:
    if manifest is None:
        return ["the run's manifest was lost or damaged, and with it the versions of its plugins"]
    before = dict(manifest.get("plugins") or {})
    now = {f"{plugin.distribution}:{plugin.name}": plugin.version for plugin in registry.plugins}
    return [
        f"plugin {name} was {before[name]} and is {now.get(name, 'not installed')}"
        for name in before
        if before[name] != now.get(name)
    ]


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As they are read back from JSON."""
    import json

    read: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return read
