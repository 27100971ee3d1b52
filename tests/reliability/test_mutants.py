"""What `make mutants` tries: each change is one, is made, and can be found by the tests that are named for it."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


changes = script("changes")
mutants = script("mutants")

PROGRAM = '''
LIMIT: int | None = 3

def f(a, b=True, *, c=1):
    """Words."""
    with lock(a), opened(b) as file:
        file.write(f"{a + 1}")
    try:
        x = a.y if a < 3 else -b
    except (OSError, ValueError):
        raise
    a.z = [k for k in x if k > 1 and not b]
    return min(x, {"one": 1})
'''


def test_every_kind_of_change_is_made():
    told = {mutant.told for mutant in changes.mutants(PROGRAM)}
    assert told == {
        "module: 4 instead of 3",
        "f: False",
        "f: 2 instead of 1",
        "f: without with lock(a)",
        "f: without file.write(f'{a + 1}')",
        "f: without except (OSError, ValueError)",
        "f: […] without OSError",
        "f: […] without ValueError",
        "f: without raise",
        "f: not (a < 3)",
        "f: a <= 3 instead of a < 3",
        "f: 4 instead of 3",
        "f: -b without -",
        "f: without a.z = [k for k in x if k > 1 and (not b)]",
        "f: not (k > 1 and (not b))",
        "f: k > 1 or not b instead of k > 1 and (not b)",
        "f: k >= 1 instead of k > 1",
        "f: 2 instead of 1 (2)",
        "f: not b without not",
        "f: return min(x, {'one': 1}) → None",
        "f: max(x, {'one': 1}) instead of min(x, {'one': 1})",
        "f: {…} without 'one'",
        "f: 2 instead of 1 (3)",
    }


@pytest.mark.parametrize("name", mutants.MODULES)
def test_each_change_is_another_program_that_can_be_run(name):
    source = mutants.file_of(name).read_text(encoding="utf-8")
    found = changes.mutants(source)
    assert len({ast.dump(mutant.tree) for mutant in found} | {ast.dump(ast.parse(source))}) == len(found) + 1
    assert len({mutant.told for mutant in found}) == len(found), "each is named by what it is"
    for mutant in found:
        compile(mutant.tree, name, "exec")
    assert set(mutants.SAME.get(name, {})) <= {mutant.told for mutant in found}
    assert all((mutants.ROOT / test).is_file() for test in mutants.MODULES[name])
