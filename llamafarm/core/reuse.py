"""Give another environment a package as it is installed here: the same build, without another download or copy."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def reuse(name: str, site: Path, besides: Collection[str]) -> str:
    """Link a package, and what it requires, into another environment of the same Python.

    Args:
        name: The package.
        site: The other environment's `site-packages`.
        besides: Packages that get there in another way.

    Returns:
        What is there now, such as `torch 2.13.0+cpu`; empty where it cannot be done: an installation that leads to
        sources, or whose files nobody recorded.
    """
    held = {canonicalize_name(str(one.metadata["Name"])) for one in distributions(path=[str(site)])}
    try:
        found = _closure(name, held | {canonicalize_name(one) for one in besides})
    except PackageNotFoundError:
        return ""
    if any(_elsewhere(one) for one in found.values()):
        return ""
    for one in found.values():
        _link(one, site)
    first = found[canonicalize_name(name)]
    return f"{name} {first.version}"


def _closure(name: str, left_out: Collection[str]) -> dict[str, Distribution]:
    found: dict[str, Distribution] = {}
    waiting = [name]
    while waiting:
        key = canonicalize_name(waiting.pop())
        if key in found or (key in left_out and key != canonicalize_name(name)):
            continue
        found[key] = distribution(key)
        needed = [Requirement(text) for text in found[key].requires or ()]
        waiting += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def _elsewhere(distribution: Distribution) -> bool:
    if distribution.files is None:
        return True
    told = json.loads(distribution.read_text("direct_url.json") or "{}")
    return bool(told.get("dir_info", {}).get("editable"))


def _link(one: Distribution, site: Path) -> None:
    for file in one.files or ():
        source = Path(str(one.locate_file(file)))
        if ".." in file.parts or file.suffix == ".pyc" or not source.is_file():
            continue  # scripts name our own interpreter; compiled files are made again
        target = site / file
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or files of another user
            shutil.copy2(source, target)
