"""The manifest of a checkpoint or a result: what is in the folder, to the last bit, and what it was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from llamafarm.files import write_atomically

CHECKPOINT_FILE: Final = "llamafarm_checkpoint.json"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class CheckpointManifest:
    """What a folder holds.

    Attributes:
        step: Optimizer steps done.
        files: Name → size and SHA-256 of each file beside the manifest.
        position: Where in the data it stands: `epoch`, `step_of_epoch`.
        identity: What it was made from: digests of data, tokenizer, template and base model, and the like.
    """

    step: int
    files: Mapping[str, tuple[int, str]]
    position: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)


def write_manifest(
    folder: Path, step: int, *, position: Mapping[str, Any], identity: Mapping[str, Any]
) -> CheckpointManifest:
    """Write the manifest of all files in `folder`, as the last of them."""
    files = {
        file.name: (file.stat().st_size, file_digest(file))
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != CHECKPOINT_FILE
    }
    content = {
        "version": _VERSION,
        "step": step,
        "position": dict(position),
        "identity": dict(identity),
        "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in files.items()},
    }
    write_atomically(folder / CHECKPOINT_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return CheckpointManifest(step, files, position, identity)


def read_manifest(folder: Path) -> CheckpointManifest | None:
    """The manifest of a folder; None if there is none that can be understood."""
    try:
        content = json.loads((folder / CHECKPOINT_FILE).read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            return None
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in content["files"].items()}
        return CheckpointManifest(int(content["step"]), files, dict(content["position"]), dict(content["identity"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def damage(folder: Path, *, content: bool = True) -> str | None:
    """What is wrong with a checkpoint, in words; None if it is whole.

    Args:
        folder: The checkpoint.
        content: Also compare what is in the files, not only their sizes.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return f"it has no {CHECKPOINT_FILE} that can be read"
    try:
        if missing := sorted(name for name in manifest.files if not _inside(folder, name)):
            return f"{missing[0]} is missing"
        for name, (size, digest) in manifest.files.items():
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found:,} bytes instead of {size:,}"
            if content and file_digest(folder / name) != digest:
                return f"{name} is not what was written: its SHA-256 differs"
    except OSError as error:
        return f"{Path(str(error.filename)).name} cannot be read: {error.strerror or error}"
    return None


def _inside(folder: Path, name: str) -> bool:
    """Whether a name of a manifest is that of a file in its folder, and of none elsewhere."""
    return Path(name).name == name and (folder / name).is_file()


def file_digest(file: Path) -> str:
    """SHA-256 of a file in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
