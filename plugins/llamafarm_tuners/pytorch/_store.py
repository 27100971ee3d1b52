"""Write models, adapters and checkpoints, so that each is there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from llamafarm.api import Method
from llamafarm.errors import NumericError
from llamafarm.files import sync_file, sync_folder, system_errors
from llamafarm.models._adapter import without_idle_warnings
from llamafarm.models.record import write_methods
from llamafarm.models.vocabulary import write_additions
from llamafarm_tuners.pytorch.card import model_card
from llamafarm_tuners.pytorch.journal import on_disk, write_json

WRITING: Final = ".writing-"
OLD: Final = ".old-"


@dataclass(frozen=True, slots=True)
class Trained:
    """What is saved: the model as it is in memory, its tokenizer, and how it is to be described.

    Attributes:
        model: With its methods applied; not wrapped.
        tokenizer: Saved beside it.
        base: The base model as the user named it; empty for a model from scratch.
        base_name: The same without a private path, for the card.
        facts: What the card lists.
        methods: What was applied to the model, in order: written down beside it.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    base: str
    base_name: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    methods: Sequence[Method[Any]] = ()

    @property
    def is_adapter(self) -> bool:
        """Whether only an adapter is saved."""
        return hasattr(self.model, "peft_config")

    @property
    def adapter_kind(self) -> str:
        """The kind of adapter that is saved; empty when it is a whole model."""
        kinds = [method.adapter().kind for method in self.methods if not method.stacks]
        return kinds[0] if self.is_adapter and kinds else "adapter" if self.is_adapter else ""


def write_model(trained: Trained, folder: Path) -> None:
    """Write adapter or model, tokenizer and card into an existing folder.

    Raises:
        NumericError: If a trained weight is not finite: such a model is never written.
    """
    _require_finite(trained.model)
    if trained.is_adapter:
        _write_adapter(trained, folder)
        write_additions(folder, trained.model)
    else:
        trained.model.save_pretrained(folder)
    with system_errors():
        trained.tokenizer.save_pretrained(folder)
    write_methods(folder, trained.methods, trained.model)
    for method in trained.methods:
        method.written(trained.model, folder)
    card = model_card(trained.base_name, trained.facts, trained.adapter_kind)
    (folder / "README.md").write_text(card, encoding="utf-8")


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `folder` at the end, or goes away on failure.

    What is written survives a loss of power once this is left: files, names, and the name of the folder itself.

    Raises:
        DiskError: If it cannot be written.
    """
    with on_disk(folder), _temporary(folder.parent) as temporary:
        yield temporary
        _sync(temporary)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=OLD, dir=folder.parent))
            folder.rename(old / folder.name)
            temporary.rename(folder)
            sync_folder(folder.parent)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(folder)
            sync_folder(folder.parent)


@contextmanager
def merged_into(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files are moved into `folder`, one rename each, at the end.

    Raises:
        DiskError: If it cannot be written.
    """
    with on_disk(folder), _temporary(folder) as temporary:
        yield temporary
        _sync(temporary)
        for file in sorted(temporary.iterdir()):
            file.replace(folder / file.name)
        sync_folder(folder)


def swept(folder: Path) -> None:
    """Remove what a run that was killed left half written; put back what it was about to replace."""
    for path in folder.iterdir():
        if path.name.startswith(OLD):
            for inner in path.iterdir():
                if not (folder / inner.name).exists():
                    inner.rename(folder / inner.name)
        if path.name.startswith((WRITING, OLD)):
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith(".") and path.suffix == ".part":
            path.unlink()


def removed(folder: Path) -> None:
    """Remove a folder in a way that never leaves half of it under its name."""
    doomed = Path(tempfile.mkdtemp(prefix=WRITING, dir=folder.parent))
    folder.rename(doomed / folder.name)
    sync_folder(folder.parent)  # else a loss of power might undo the renaming and not the removal
    shutil.rmtree(doomed, ignore_errors=True)


def link_files(files: Iterable[Path], target: Path) -> None:
    """Give files a second name in `target`, copying where the file system cannot."""
    for file in files:
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copy2(file, target / file.name)


def _write_adapter(trained: Trained, folder: Path) -> None:
    for config in trained.model.peft_config.values():
        config.base_model_name_or_path = trained.base
    # left to itself PEFT would look the base model up on the hub to see whether its vocabulary has grown
    with without_idle_warnings(), _without_card(trained.model):
        trained.model.save_pretrained(folder, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("target_modules", "modules_to_save"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    write_json(path, config)


@contextmanager
def _without_card(model: nn.Module) -> Iterator[None]:
    """Have PEFT write no card: ours takes its place."""
    model.create_or_update_model_card = _no_card
    try:
        yield
    finally:
        del model.create_or_update_model_card


def _no_card(output_dir: str) -> None:
    """Write none."""


def _require_finite(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise NumericError.of(
                "LF-NUMERIC-003", f"the weight {name} is not finite: the model is not saved", hint="lower learning_rate"
            )


@contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    parent.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix=WRITING, dir=parent))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        sync_file(file)
    sync_folder(folder)
