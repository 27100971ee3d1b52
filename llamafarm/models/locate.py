"""Find out what a model's name stands for, before anything heavy is imported."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llamafarm.errors import ModelError, Problem, nearest, one_of

_BUILTIN = Path(__file__).parent / "_builtin"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_MODEL_FILES = ("config.json", "adapter_config.json")


@dataclass(frozen=True, slots=True)
class Located:
    """A model that was found.

    Attributes:
        given: The name as the user wrote it: the one that is saved and shown.
        kind: `builtin`, `folder`, or `hub` (not looked up yet).
        folder: Where the files are; None for the hub.
    """

    given: str
    kind: Literal["builtin", "folder", "hub"]
    folder: Path | None = None

    @property
    def source(self) -> str:
        """What transformers loads it by."""
        return str(self.folder) if self.folder else self.given

    @property
    def is_adapter(self) -> bool:
        """Whether the folder holds an adapter rather than a whole model."""
        return self.folder is not None and (self.folder / "adapter_config.json").is_file()

    @property
    def public_name(self) -> str:
        """A name without the path of a private folder, for what is meant to be published."""
        return Path(os.path.realpath(Path(self.given).expanduser())).name if self.kind == "folder" else self.given


def not_whole(model: str, where: str = "") -> Problem:
    """What to say of an adapter that is given as a base.

    transformers would load it onto its base, and a method would be put on the two as if they were one; what `full`
    trains would be lost, because only the adapter is saved of such a model.
    """
    message = f"{model} is an adapter, not a whole model to start from"
    hint = "llamafarm export --to merged makes it one with its base; --resume goes on with a run that was interrupted"
    return Problem("LF-MODEL-223", message, where, hint)


def locate(model: str) -> Located:
    """Say what `model` stands for: `builtin:NAME`, a folder, or the id of a hub model.

    Raises:
        ModelError: If a folder was meant and there is none, or it holds no model.
    """
    if model.startswith("builtin:"):
        return Located(model, "builtin", _builtin(model.removeprefix("builtin:")))
    path = Path(model).expanduser()
    if path.is_dir():
        return Located(model, "folder", _checked(model, path))
    if path.exists():
        raise ModelError.of(
            "LF-MODEL-002", f"{model!r} is a file, not a model folder", hint="give the folder that holds config.json"
        )
    if _looks_like_a_path(model, path):
        raise ModelError.of("LF-MODEL-001", f"no such model folder: {model}", hint=_sibling(path))
    return Located(model, "hub")


def builtin_models() -> list[str]:
    """Names of the models that ship with LlamaFarm, sorted."""
    return sorted(entry.parent.name for entry in _BUILTIN.glob("*/config.json"))


def _builtin(name: str) -> Path:
    names = builtin_models()
    if name in names:
        return _BUILTIN / name
    hint = nearest(name, names)
    known = f"there is {one_of(names)}" if names else "there are none"
    raise ModelError.of("LF-MODEL-003", f"no built-in model {name!r}; {known}", hint=hint)


def _checked(given: str, folder: Path) -> Path:
    if any((folder / file).is_file() for file in _MODEL_FILES):
        return folder
    found = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    models = [name for name in found if any((folder / name / file).is_file() for file in _MODEL_FILES)]
    hint = f"did you mean {folder / models[0]}?" if models else f"the folder holds {', '.join(found[:8]) or 'nothing'}"
    raise ModelError.of("LF-MODEL-002", f"no config.json or adapter_config.json in the model folder {given}", hint=hint)


def _looks_like_a_path(model: str, path: Path) -> bool:
    below_a_folder = len(path.parts) > 1 and Path(path.parts[0]).is_dir()
    return below_a_folder or not _HUB_ID.fullmatch(model)


def _sibling(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} either"
    folders = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    guess = nearest(path.name, folders)
    listed = f"folders there: {', '.join(sorted(folders)[:8])}" if folders else f"{path.parent} holds no folders"
    return guess or listed
