"""Break the modules that nothing may slip past, one small thing at a time, and see whether their tests notice.

    python tests/reliability/mutants.py --each 30

A mutant is a module with one change: a comparison turned, a number off by one, a condition the other way round, a call
left out. It is tested in a process forked off one that has imported what is slow, with the changed source in place
of the module's own. What survives is printed: a test is missing, or the change makes no difference.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType

ROOT = Path(__file__).parents[2]
SECONDS = 300

MODULES = {
    "llamafarm.models.checkpoint": ("tests/unit/models/test_checkpoint.py",),
    "llamafarm_tuners.pytorch._checkpoints": ("tests/unit/tuners/test_store.py",),
    "llamafarm.core.permissions": ("tests/security/test_traversal.py", "tests/security/test_permissions.py"),
    "llamafarm.core.place": ("tests/unit/core/test_place.py", "tests/unit/core/test_run.py"),
    "llamafarm.data.ledger": ("tests/unit/data/test_ledger.py",),
}
"""Module → the tests that have to notice."""

_TURNED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.BitOr: ast.BitAnd,
    ast.Continue: ast.Break,
}


class Mutator(ast.NodeTransformer):
    """Makes the change with a number, in the order in which it meets them; counts them all.

    Attributes:
        count: Changes that were met.
        told: The change that was made.
    """

    def __init__(self, wanted: int = -1) -> None:
        self._wanted, self.count, self.told = wanted, 0, ""

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.JoinedStr | ast.AnnAssign) and not getattr(node, "value", None):
            return node  # words for people; a field without a value
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            node.body = [self.visit(part) for part in node.body]  # not its decorators and defaults
            return node
        changed = self._changed(node)
        return changed if changed is not None else self.generic_visit(node)

    def _changed(self, node: ast.AST) -> ast.AST | None:
        for told, made in _changes(node):
            self.count += 1
            if self.count - 1 == self._wanted:
                self.told = f"line {getattr(node, 'lineno', '?')}: {told}"
                return ast.copy_location(made, node)
        return None


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may be changed at a place."""
    match node:
        case ast.Compare(ops=[one]) if type(one) in _TURNED:
            yield from _replaced(node, ops=[_TURNED[type(one)]()])
        case ast.BoolOp() | ast.BinOp() if type(node.op) in _TURNED:
            yield from _replaced(node, op=_TURNED[type(node.op)]())
        case ast.UnaryOp(op=ast.Not()):
            yield f"{ast.unparse(node)} without not", node.operand
        case ast.If() | ast.IfExp() | ast.While():
            turned = ast.UnaryOp(ast.Not(), node.test)
            yield f"if not ({ast.unparse(node.test)})", _with(node, test=ast.copy_location(turned, node.test))
        case ast.Constant(value=bool(value)):
            yield f"{not value}", ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield f"{value + 1} instead of {value}", ast.Constant(value + 1)
        case ast.Return(value=ast.Constant(value=None)):
            return
        case ast.Return(value=ast.expr()):
            yield f"{ast.unparse(node)} → None", ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()) | ast.Raise():
            yield f"without {ast.unparse(node)[:60]}", ast.Pass()
        case ast.Continue():
            yield "break instead of continue", ast.Break()


def _replaced(node: ast.expr, **parts: object) -> Iterator[tuple[str, ast.AST]]:
    made = _with(node, **parts)
    yield f"{ast.unparse(made)} instead of {ast.unparse(node)}", made


def _with(node: ast.AST, **parts: object) -> ast.AST:
    made = copy.copy(node)
    for name, part in parts.items():
        setattr(made, name, part)
    return made


def count_changes(source: str) -> int:
    """How many mutants a module has."""
    mutator = Mutator()
    mutator.visit(ast.parse(source))
    return mutator.count


def mutant(source: str, number: int) -> tuple[ast.AST, str]:
    """The syntax tree with that change, and what it is."""
    mutator = Mutator(number)
    tree = mutator.visit(ast.parse(source))
    return ast.fix_missing_locations(tree), mutator.told


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


def survives(name: str, file: Path, tree: ast.AST, tests: Sequence[str]) -> bool:
    """Whether the tests are content with a mutant. One that makes them wait too long is noticed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            nothing = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(nothing, descriptor)
            sys.meta_path.insert(0, Mutated(name, str(file), compile(tree, str(file), "exec")))
            importlib.import_module(name)  # before pytest puts finders of its own in front
            import pytest

            code = int(
                pytest.main(
                    ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning", *tests]
                )
            )
        finally:
            os._exit(code)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def main() -> int:
    """Print what survives; 1 if fewer than nine in ten are noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=0, help="so many of each module, drawn at random; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--module", default="", help="only those with this in their name")
    options = parser.parse_args()
    os.chdir(ROOT)
    for heavy in ("torch", "transformers", "peft", "accelerate", "safetensors.torch", "pydantic"):
        importlib.import_module(heavy)
    noticed = tried = 0
    for name, named in MODULES.items():
        if options.module not in name:
            continue
        tests = [test for test in named if Path(test).exists()]
        file = next(path for path in ROOT.rglob("/".join(name.split(".")) + ".py") if ".venv" not in path.parts)
        source = file.read_text(encoding="utf-8")
        if not survives(name, file, ast.parse(source), tests):
            print(f"{name}: its tests fail without a change")
            return 1
        numbers = list(range(count_changes(source)))
        if options.each:
            numbers = sorted(random.Random(options.seed).sample(numbers, min(options.each, len(numbers))))
        left = []
        for number in numbers:
            tree, told = mutant(source, number)
            if survives(name, file, tree, tests):
                left.append(told)
                print(f"{name} {told}: survives", flush=True)
        noticed, tried = noticed + len(numbers) - len(left), tried + len(numbers)
        share = f"{len(numbers) - len(left)} of {len(numbers)} are noticed"
        print(f"{name}: {share} ({count_changes(source)} there are)", flush=True)
    print(f"{noticed} of {tried} mutants are noticed, {noticed / max(tried, 1):.0%}")
    return int(noticed < 0.9 * tried)


if __name__ == "__main__":
    sys.exit(main())
