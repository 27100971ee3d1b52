"""Finds the files that an earlier split left beside a dataset."""

from __future__ import annotations

from pathlib import Path


def split_names(path: Path) -> tuple[Path, Path]:
    """`data.jsonl` → `data_train.jsonl`, `data_eval.jsonl`: where a split writes unless told otherwise."""
    return path.with_name(f"{path.stem}_train{path.suffix}"), path.with_name(f"{path.stem}_eval{path.suffix}")


def find_split(path: Path) -> tuple[Path, Path] | None:
    """The two sides of an earlier split of `path`, or of the split whose training side `path` is."""
    whole = path.with_name(path.name.replace(f"_train{path.suffix}", path.suffix))
    sides = split_names(whole)
    if whole == path:
        return sides if all(side.is_file() for side in sides) else None
    return (path, sides[1]) if sides[1].is_file() else None
