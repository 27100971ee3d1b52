"""Where the files of a loaded model are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llamafarm.api import BaseModelConfig
from llamafarm.models.locate import Located

_ATTRIBUTE = "llamafarm_files"


def remember_files(model: Any, located: Located, config: BaseModelConfig) -> None:
    """Remember the folder that a model was loaded from; for one of the hub that of the cache."""
    folder = located.folder
    if folder is None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(
            located.given, "config.json", cache_dir=config.cache_dir, revision=config.revision
        )
        folder = Path(found).parent if isinstance(found, str) else None
    setattr(model, _ATTRIBUTE, folder)


def files_of(model: Any) -> Path | None:
    """The folder that a model was loaded from; None if that is not known."""
    folder: Path | None = getattr(model, _ATTRIBUTE, None)
    return folder
