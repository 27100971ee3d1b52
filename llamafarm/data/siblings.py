"""Finds the files that an earlier split left beside a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llamafarm.data.compressed import plain_name

SIDES = ("train", "eval", "extra")
"""The outputs of a split, in the order of their numbers; the last one is written only when it is asked for."""


def split_names(path: Path, sides: Sequence[str] = SIDES[:2]) -> tuple[Path, ...]:
    """`data.csv.gz` → `data_train.jsonl`, `data_eval.jsonl`: where a split writes unless told otherwise."""
    stem = Path(plain_name(path)).stem
    return tuple(path.with_name(f"{stem}_{side}.jsonl") for side in sides)


def find_split(path: Path) -> tuple[Path, Path] | None:
    """The two sides of an earlier split of `path`, or of the split whose training side `path` is.

    A split that is older than what was split is none: it would leave out what came in since.
    """
    whole = path.with_name(path.name.replace(f"_train{path.suffix}", path.suffix))
    if whole != path:
        held_out = _beside(whole, "eval")
        return (path, held_out) if held_out.is_file() else None
    for train, held_out in ((_beside(path, "train"), _beside(path, "eval")), split_names(path)):
        if all(side.is_file() and not _older(side, path) for side in (train, held_out)):
            return train, held_out
    return None


def _beside(path: Path, side: str) -> Path:
    """The file of a side that has the suffix of the whole."""
    return path.with_name(f"{path.stem}_{side}{path.suffix}")


def _older(side: Path, whole: Path) -> bool:
    return whole.exists() and side.stat().st_mtime < whole.stat().st_mtime
