"""Finds the files that an earlier split left beside a dataset."""

from __future__ import annotations

from pathlib import Path


def split_names(path: Path) -> tuple[Path, Path]:
    """`data.jsonl` → `data_train.jsonl`, `data_eval.jsonl`: where a split writes unless told otherwise."""
    return path.with_name(f"{path.stem}_train{path.suffix}"), path.with_name(f"{path.stem}_eval{path.suffix}")


def find_split(path: Path) -> tuple[Path, Path] | None:
    """The two sides of an earlier split of `path`, or of the split whose training side `path` is.

    A split that is older than what was split is none: it would leave out what came in since.
    """
    whole = path.with_name(path.name.replace(f"_train{path.suffix}", path.suffix))
    if whole != path:
        held_out = split_names(whole)[1]
        return (path, held_out) if held_out.is_file() else None
    for sides in (split_names(path), split_names(path.with_suffix(".jsonl"))):
        if all(side.is_file() and not _older(side, path) for side in sides):
            return sides
    return None


def _older(side: Path, whole: Path) -> bool:
    return whole.exists() and side.stat().st_mtime < whole.stat().st_mtime
