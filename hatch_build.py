"""Compiles the kernels of the fine-tuner `pytorch` into the wheel, where there is a C compiler."""

from __future__ import annotations

import os
import platform
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = Path("llamafarm_tuners", "pytorch", "fast", "native")
LIBRARY = "kernels.so"
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-Wno-psabi")
_V4 = ("-march=x86-64-v4", "-mprefer-vector-width=512")
LEVELS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "x86_64": {
        "v5": (*_V4, "-mavx512bf16"),
        "v4": _V4,
        "v3": ("-march=x86-64-v3",),
    },
    "aarch64": {"v8": ()},
    "arm64": {"v8": ()},
}
"""What each architecture's kernels are compiled for, the fastest first; a processor takes the first that it has."""

COMMON = "threads.c"
"""Compiled once, for every processor of the architecture."""


class Kernels(BuildHookInterface[Any]):
    """Without a compiler, or on another architecture, the wheel has no kernels: training is slower, and the same."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a wheel is built; `version` is `editable` where a checkout is installed as it stands."""
        sources = Path(self.root, "plugins", PACKAGE)
        in_place = version == "editable"
        self._made = tempfile.TemporaryDirectory()  # removed with this object, when the wheel is written
        library = (sources if in_place else Path(self._made.name)) / LIBRARY
        library.unlink(missing_ok=True)
        trouble = build(sources, library)
        if trouble:
            self.app.display_warning(f"no compiled kernels: {trouble}")
            return
        if not in_place:
            build_data["force_include"][str(library)] = str(PACKAGE / LIBRARY)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform()}"


def build(sources: Path, library: Path) -> str:
    """Compile all sources for each level into one library; returns what is in the way, if something is."""
    compiler, levels = _compiler(), LEVELS.get(platform.machine())
    if compiler is None:
        return "no C compiler"
    if levels is None or sys.platform == "win32":
        return f"not made for {platform.machine()} on {sys.platform}"
    with tempfile.TemporaryDirectory() as folder:
        objects, trouble = [], ""
        for level, flags in levels.items():
            mine = [Path(folder, f"{name.stem}-{level}.o") for name in _leveled(sources)]
            for name, made in zip(_leveled(sources), mine, strict=True):
                trouble = trouble or _run([*compiler, *FLAGS, *flags, f"-DLEVEL={level}", "-c", name, "-o", made])
            if trouble:  # an old compiler does not know a new level; all or none, so that every wheel is the same
                return trouble
            objects += mine
        marked = f'-DSOURCES="{runpy.run_path(str(sources / "digest.py"))["digest"](sources)}"'
        return _run([*compiler, *FLAGS, marked, "-shared", sources / COMMON, *objects, "-lm", "-o", library])


def _leveled(sources: Path) -> list[Path]:
    return sorted(name for name in sources.glob("*.c") if name.name != COMMON)


def _compiler() -> list[str] | None:
    """`CC`, or what the system calls its compiler; an empty or unknown `CC` is none."""
    if "CC" in os.environ:
        command = shlex.split(os.environ["CC"])
        return command if command and shutil.which(command[0]) else None
    return next(([name] for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


def _run(command: Sequence[object]) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode == 0:
        return ""
    return next((line for line in done.stderr.splitlines() if "error" in line), f"{command[0]} failed")


def _platform() -> str:
    if sys.platform == "darwin":
        from packaging.tags import platform_tags  # a dependency of hatchling

        return next(iter(platform_tags()))
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
