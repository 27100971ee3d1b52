"""What a strategy may ask for by itself, and what only somebody at the command line may.

A strategy is data that people share: it neither lets foreign code run, nor uploads, nor writes where configuration and
programs live. Flags can, because whoever types them has decided.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Final

from llamafarm.api.config import FineTunerConfig
from llamafarm.core.canonical import TUNER
from llamafarm.core.layers import Origin, Path
from llamafarm.core.load import Loaded
from llamafarm.core.record import manifest_of
from llamafarm.errors import SecurityError

_TYPED: Final = frozenset({"flag", "set", "environment"})
_SYSTEM: Final = tuple(
    map(FilePath, ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr", "/var"))
)
_SCRATCH: Final = (FilePath("/var/tmp"), FilePath("/var/folders"), FilePath("/dev/shm"))  # noqa: S108  # allowed places
_HIDDEN_BUT_OURS: Final = frozenset({".cache"})
_LONGEST_NAME, _LONGEST_PATH = 255, 4096


def refusals(loaded: Loaded) -> Iterator[SecurityError]:
    """What the strategy asks for and may not, with where it does."""
    config = loaded.tuner_config
    if config.base_model.trust_remote_code and _origin(loaded, "base_model", "trust_remote_code").kind != "flag":
        yield SecurityError.of(
            "LF-SECURITY-002",
            "base_model.trust_remote_code is true: code of the model would run",
            where=_origin(loaded, "base_model", "trust_remote_code").place,
            hint="read that code; if you trust it, add the flag --trust-remote-code: no file, variable or --set can",
        )
    for path, value in _paths(loaded):
        if reason := _no_path(value):
            message = f"{'.'.join(map(str, path))} {reason}"
            yield SecurityError.of("LF-SECURITY-008", message, where=_at(loaded, _full(path)).place)
        elif reason := _no_place_to_write(value) if _chooses_a_place(loaded, path) else "":
            yield SecurityError.of(
                "LF-SECURITY-007",
                f"{'.'.join(map(str, path))} is {value}: {reason}",
                where=_at(loaded, _full(path)).place,
                hint="choose a folder for it on the command line: --output FOLDER, or --set",
            )


def upload_refusal(loaded: Loaded) -> SecurityError | None:
    """Uploading needs a word of whoever runs the strategy."""
    origin = _origin(loaded, "training", "push_to_hub")
    if not loaded.tuner_config.training.push_to_hub or origin.kind in _TYPED:
        return None
    hint = "add --push-to-hub if you want that"
    message = f"the strategy would upload the result to {loaded.tuner_config.training.hub_model_id}"
    return SecurityError.of("LF-SECURITY-010", message, where=origin.place, hint=hint)


def _paths(loaded: Loaded) -> Iterator[tuple[Path, str]]:
    """Every setting that names a file or folder, with its value."""
    config: FineTunerConfig = loaded.tuner_config
    yield from _given(("base_model", "huggingface_id"), config.base_model.huggingface_id)
    yield from _given(("base_model", "cache_dir"), config.base_model.cache_dir)
    yield from _given(("output_dir",), config.output_dir)
    for name in ("path", "eval_path", "dataset_dir"):
        yield from _given(("dataset", name), getattr(config.dataset, name))
    for number, source in enumerate(config.dataset.sources or ()):
        for name in ("path", "dataset_dir"):
            yield from _given(("dataset", "sources", number, name), getattr(source, name))
    if loaded.strategy.export is not None:
        yield from _given(("export", "output_dir"), loaded.strategy.export.output_dir)


def _given(path: Path, value: str | None) -> Iterator[tuple[Path, str]]:
    if value is not None:
        yield path, value


def _full(path: Path) -> Path:
    return path if path[0] == "export" else (*TUNER, *path)


def _chooses_a_place(loaded: Loaded, path: Path) -> bool:
    """Whether files are written there, and nobody at the command line said so."""
    return path[-1] in ("output_dir", "cache_dir") and _at(loaded, _full(path)).kind not in _TYPED


def _at(loaded: Loaded, path: Path) -> Origin:
    while path and path not in loaded.origins:
        path = path[:-1]
    return loaded.origins.get(path, Origin("default", ""))


def _origin(loaded: Loaded, *path: str) -> Origin:
    return _at(loaded, (*TUNER, *path))


def _no_path(value: str) -> str:
    """Why a text is no path on any system; empty if it may be one."""
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        return f"holds a control character: {value[:60]!r}"
    try:
        names = [os.fsencode(name) for name in value.split("/")]
    except UnicodeEncodeError:
        return f"holds half a character: {value[:60]!r}"
    if max(map(len, names)) > _LONGEST_NAME or len(os.fsencode(value)) > _LONGEST_PATH:
        return f"is longer than any path: {len(value):,} characters"
    return ""


def _no_place_to_write(value: str) -> str:
    """Why a strategy may not write there; empty if it may. Links are followed first."""
    folder, here, home = (FilePath(os.path.realpath(path)) for path in (value, FilePath.cwd(), FilePath.home()))
    if manifest_of(folder) is not None:
        return ""  # somebody chose it before
    inside = folder.is_relative_to(here)
    below = folder.relative_to(here).parts if inside else folder.parts
    system = any(map(folder.is_relative_to, _SYSTEM)) and not any(map(folder.is_relative_to, _SCRATCH))
    at_work = any(map(here.is_relative_to, _SYSTEM))  # in one of them: not in the root, which has all of them below it
    reasons = {
        "~ is not replaced in strategies": value.startswith("~"),
        "this is the working folder itself": folder == here,
        "it leads out of the working folder": not inside and not FilePath(value).is_absolute(),
        "a home folder, or one above it, is no place for a run": folder == home or folder in home.parents,
        "hidden folders hold configuration": any(
            part.startswith(".") and part not in _HIDDEN_BUT_OURS for part in below
        ),
        "the system's folders hold programs and their configuration": system and not (inside and at_work),
    }
    return next((reason for reason, applies in reasons.items() if applies), "")
