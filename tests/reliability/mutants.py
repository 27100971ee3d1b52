"""Break the modules that nothing may slip past, one small thing at a time, and see whether their tests notice.

    python tests/reliability/mutants.py --each 30

A mutant is a module with one change: a comparison turned, a number off by one, a condition the other way round, a call
or a lock left out, an error not caught, an entry of a table dropped (`changes.py`). It is tested in a process forked
off one that has imported what is slow, with the changed source in place of the module's own. What survives is printed:
a test is missing, or the change makes no difference. At least nine in ten of each module have to be noticed.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import logging
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import NamedTuple

from changes import mutants

ROOT = Path(__file__).parents[2]
TOPS = (ROOT, ROOT / "plugins")
SHARE = 0.9

_CORE, _TUNERS = "tests/unit/core", "tests/unit/tuners"
MODULES = {
    "llamafarm.models.checkpoint": ("tests/unit/models/test_checkpoint.py",),
    "llamafarm_tuners.pytorch._checkpoints": (f"{_TUNERS}/test_checkpoints.py",),
    "llamafarm_tuners.pytorch._state": (f"{_TUNERS}/test_state.py",),
    "llamafarm_tuners.pytorch._store": (f"{_TUNERS}/test_store.py",),
    "llamafarm_tuners.pytorch.identity": (f"{_TUNERS}/test_identity.py",),
    "llamafarm.files": ("tests/unit/test_files.py",),
    "llamafarm.core.permissions": (f"{_CORE}/test_permissions.py",),
    "llamafarm.core.place": (f"{_CORE}/test_place.py",),
    "llamafarm.core.output": (f"{_CORE}/test_output.py",),
    "llamafarm.core.lock": (f"{_CORE}/test_lock.py",),
    "llamafarm.core.record": (f"{_CORE}/test_output.py",),
    "llamafarm.data.ledger": ("tests/unit/data/test_ledger.py",),
}
"""Module → the tests that have to notice: the quickest that suffice; others may notice as well."""

SAME: dict[str, dict[str, str]] = {
    "llamafarm.files": {"replacing: False (3)": "one of the two lists is made from the other: they are as long"},
    "llamafarm.core.lock": {"module: without except ImportError": "this script forks: it runs where fcntl is"},
}
"""Module → change → why nobody can tell it from the original. These do not count."""


class Mutated(MetaPathFinder, Loader):
    """Imports one module from a changed tree."""

    def __init__(self, name: str, file: str, code: CodeType) -> None:
        self._name, self._file, self._code = name, file, code

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Only for that module."""
        if name != self._name:
            return None
        return importlib.util.spec_from_file_location(name, self._file, loader=_Changed(name, self._file, self._code))


class _Changed(SourceFileLoader):
    def __init__(self, name: str, file: str, code: CodeType) -> None:
        super().__init__(name, file)
        self._code = code

    def get_code(self, fullname: str) -> CodeType:
        return self._code


class Limits(NamedTuple):
    """When tests are stopped.

    Attributes:
        seconds: Of waiting.
        computing: Seconds of a processor; other work on the machine does not count.
    """

    seconds: float = 600
    computing: float = 600


class Tried(NamedTuple):
    """How the tests of a module ended.

    Attributes:
        code: Of pytest; None if they were stopped because they took too long.
        seconds: How long they took.
        computing: Seconds of a processor.
    """

    code: int | None
    seconds: float
    computing: float

    def limits(self) -> Limits:
        """For tests of something that should take as long."""
        return Limits(10 * self.seconds + 5, 3 * self.computing + 5)


def file_of(name: str) -> Path:
    """The file of a module of this checkout; other copies of it may lie about."""
    return next(file for top in TOPS if (file := top.joinpath(*name.split(".")).with_suffix(".py")).is_file())


def attempt(name: str, tree: ast.AST, limits: Limits, *, loaded: Path | None = None) -> Tried:
    """Run the tests of a module with this tree in its place.

    Args:
        name: The module.
        tree: Its program.
        limits: When the process and all that it started are ended.
        loaded: A file for the names of the modules that were imported.
    """
    place = Path(tempfile.mkdtemp(prefix="mutant-"))
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limits.computing), resource.RLIM_INFINITY))
        _run_tests(name, tree, place, loaded)
    used: resource.struct_rusage | None = None
    done = status = 0
    try:
        while not done and time.monotonic() < start + limits.seconds:
            time.sleep(0.01)
            done, status, used = os.wait4(pid, os.WNOHANG)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        if not done:
            os.waitpid(pid, 0)
        shutil.rmtree(place, ignore_errors=True)
    code = os.waitstatus_to_exitcode(status) if done else None
    computing = used.ru_utime + used.ru_stime if used else 0.0
    return Tried(None if code == -signal.SIGXCPU else code, time.monotonic() - start, computing)


def _run_tests(name: str, tree: ast.AST, place: Path, loaded: Path | None) -> None:
    code = 1
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        file = str(file_of(name))
        if name in sys.modules:
            raise RuntimeError(f"{name} is imported already")
        sys.meta_path.insert(0, Mutated(name, file, compile(tree, file, "exec")))
        importlib.import_module(name)  # before pytest puts finders of its own in front
        import pytest
        from hypothesis import settings

        settings.register_profile("mutants", derandomize=True, database=None)  # what one found helps no other
        settings.load_profile("mutants")
        options = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        code = int(pytest.main([*options, f"--basetemp={place / 'tests'}", *MODULES[name]]))
        if loaded:
            loaded.write_text(json.dumps(list(sys.modules)), encoding="utf-8")
    finally:
        os._exit(code)


def prepared(name: str, source: str) -> Tried | None:
    """Import what the tests of a module need of other projects; how they end without a change, None if they fail."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = Path(folder) / "modules.json"
        if attempt(name, ast.parse(source), Limits(), loaded=loaded).code != 0:
            return None
        logging.disable()  # what some say when they are imported
        for other in json.loads(loaded.read_text(encoding="utf-8")):
            if not other.startswith(("llamafarm", "test", "conftest", "core_test", "__")):
                with suppress(Exception):
                    importlib.import_module(other)
        logging.disable(logging.NOTSET)
    tried = attempt(name, ast.parse(source), Limits())
    return tried if tried.code == 0 else None


def score(name: str, drawn: int, seed: int, only: str) -> float | None:
    """Try the mutants of a module; the share that is noticed, None if its tests fail without a change."""
    source = file_of(name).read_text(encoding="utf-8")
    all_of_them = mutants(source)
    same = SAME.get(name, {})
    if unknown := set(same) - {mutant.told for mutant in all_of_them}:
        print(f"{name}: there is no such change any more: {unknown}")
        return None
    tried = [mutant for mutant in all_of_them if mutant.told not in same and only in mutant.told]
    if drawn:
        tried = sorted(random.Random(seed).sample(tried, min(drawn, len(tried))), key=lambda mutant: mutant.line)
    base = prepared(name, source)
    if base is None:
        print(f"{name}: its tests fail without a change")
        return None
    start, slow, left = time.monotonic(), 0, 0
    for mutant in tried:
        end = attempt(name, mutant.tree, base.limits())
        slow += end.code is None
        if end.code == 0:
            left += 1
            print(f"{name}:{mutant.line}: {mutant.told}: survives", flush=True)
    share = 1 - left / max(len(tried), 1)
    print(
        f"{name}: {len(tried) - left} of {len(tried)} are noticed ({share:.1%}), {slow} of them by taking too long; "
        f"{len(all_of_them)} there are, {len(same)} make no difference; "
        f"{time.monotonic() - start:.0f} s, {base.seconds:.1f} s without a change",
        flush=True,
    )
    return share


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what survives; 1 if fewer than nine in ten of a module are noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=0, help="so many of each module, drawn at random; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--module", default="", help="only those with this in their name")
    parser.add_argument("--change", default="", help="only changes with this in what is printed of them")
    options = parser.parse_args(arguments)
    os.chdir(ROOT)
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")  # read on import
    names = [name for name in MODULES if options.module in name]
    shares = [score(name, options.each, options.seed, options.change) for name in names]
    return int(any(share is None or share < SHARE for share in shares))


if __name__ == "__main__":
    sys.exit(main())
