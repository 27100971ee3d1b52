"""Digests of what a training starts from: a base model's weights, a tokenizer, a chat template."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from llamafarm.errors import ModelError, Problem
from llamafarm.files import write_atomically
from llamafarm.models.checkpoint import CHECKPOINT_FILE, CheckpointManifest, file_digest, read_manifest
from llamafarm.models.locate import locate

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_STATE_OF_USE: Final = ("truncation", "padding")
"""What calling a tokenizer leaves in it; no part of what it is."""


_COMPARED: Final = ("adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""What of an adapter's own files decides what it answers, besides its base."""


def require_identity(folder: Path, base: str, revision: str | None = None) -> None:
    """Refuse an adapter that is not as it was trained: on another base model, or with files that were changed since.

    What was written down in training is compared: the base's weights, and the adapter's own weights, tokenizer and
    chat template. Adapters of other tools, which have no manifest, and bases that are not on this machine are not.

    Args:
        folder: The adapter.
        base: Its base model, by name or folder.
        revision: Of a hub model.

    Raises:
        ModelError: If anything differs; all that does is said.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return
    problems = _changed_files(folder, manifest)
    before, now = manifest.identity.get("base"), base_digest(base, revision)
    if before and now and before != now:
        message = (
            f"the adapter was trained on other weights than those of {base}: SHA-256 {before[:12]}, now {now[:12]}"
        )
        hint = f"give back the base it was trained on; to use it all the same, remove {folder / CHECKPOINT_FILE}"
        problems.insert(0, Problem("LF-MODEL-190", message, str(folder), hint))
    if problems:
        raise ModelError(problems)


def _changed_files(folder: Path, manifest: CheckpointManifest) -> list[Problem]:
    problems = []
    for name in _COMPARED:
        if name not in manifest.files:
            continue
        file = folder / name
        if file.is_file() and file_digest(file) == manifest.files[name][1]:
            continue
        message = f"{name} is {'not what was written in training' if file.is_file() else 'missing'}"
        hint = f"bring it back; to use the adapter all the same, remove {folder / CHECKPOINT_FILE}"
        problems.append(Problem("LF-MODEL-191", message, str(folder), hint))
    return problems


def base_digest(name: str, revision: str | None = None) -> str | None:
    """SHA-256 over the weight files of a base model, whatever folder it is in; None if they are not on this machine.

    Digests of large files are remembered, by size and time of change.
    """
    files = weight_files(name, revision)
    known = _Known()
    with ThreadPoolExecutor(4) as pool:  # hashing lets other threads run
        digests = list(pool.map(known.digest, files))
    known.keep()
    total = sha256()
    for file, digest in zip(files, digests, strict=True):
        total.update(f"{file.name} {digest}\n".encode())
    return total.hexdigest() if files else None


def weight_files(name: str, revision: str | None = None) -> list[Path]:
    """The weight files of a model that is on this machine, in the order of their names; none if it is not."""
    folder = locate(name).folder or _cached_snapshot(name, revision)
    if folder is None:
        return []
    return [file for kind in ("*.safetensors", "*.bin") for file in sorted(folder.glob(kind))]


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 over vocabulary, rules and special tokens."""
    if getattr(tokenizer, "is_fast", False):
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules = {key: value for key, value in rules.items() if key not in _STATE_OF_USE}
    else:
        rules = tokenizer.get_vocab()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return sha256(json.dumps([rules, special], sort_keys=True).encode()).hexdigest()


def template_digest(tokenizer: Any) -> str:
    """SHA-256 of the chat template; of nothing where there is none."""
    return sha256(json.dumps(tokenizer.chat_template, sort_keys=True).encode()).hexdigest()


class _Known:
    """Digests of files by path, size and time of change, kept between runs."""

    def __init__(self) -> None:
        self._path = _state_folder() / "file-digests.json"
        self._kept: dict[str, str] = {}
        with suppress(OSError, ValueError):
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            self._kept = {key: value for key, value in kept.items() if _DIGEST.fullmatch(str(value))}
        self._before = dict(self._kept)

    def digest(self, file: Path) -> str:
        real = file.resolve()
        if _DIGEST.fullmatch(real.name):  # the hub's cache names large files by their SHA-256
            return real.name
        found = real.stat()
        key = f"{real}|{found.st_size}|{found.st_mtime_ns}|{found.st_ino}"
        if key not in self._kept:
            self._kept[key] = file_digest(real)
        return self._kept[key]

    def keep(self) -> None:
        if self._kept == self._before:
            return
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            latest = dict(list(self._kept.items())[-1000:])
            write_atomically(self._path, json.dumps(latest, indent=1))


def _state_folder() -> Path:
    if given := os.environ.get("LLAMAFARM_HOME"):
        return Path(given) / "cache"
    from platformdirs import user_cache_path

    return user_cache_path("llamafarm")


def _cached_snapshot(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None
