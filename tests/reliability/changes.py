"""Small changes to a program, each of which its tests should notice: what `mutants.py` makes and tries."""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

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
    ast.BitAnd: ast.BitOr,
}
_NEGATED = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
_OTHER = {"min": "max", "max": "min", "any": "all", "all": "any"}


class Mutant(NamedTuple):
    """A program with one change.

    Attributes:
        line: Where it is.
        told: The function it is in, and the change; numbered if it can be made at several places there.
        tree: The whole program.
    """

    line: int
    told: str
    tree: ast.AST


def mutants(source: str) -> list[Mutant]:
    """Every program that is `source` with one change, in the order of the text; none twice."""
    counter = _Changer(-1)
    counter.visit(ast.parse(source))
    seen, found = {ast.dump(ast.parse(source))}, []
    times: Counter[str] = Counter()
    for number in range(counter.count):
        changer = _Changer(number)
        tree = ast.fix_missing_locations(changer.visit(ast.parse(source)))
        if (dump := ast.dump(tree)) not in seen:
            seen.add(dump)
            times[changer.told] += 1
            again = f" ({times[changer.told]})" if times[changer.told] > 1 else ""
            found.append(Mutant(changer.line, changer.told + again, tree))
    return found


class _Changer(ast.NodeTransformer):
    """Makes the change with a number, in the order in which it meets them; counts them all."""

    def __init__(self, wanted: int) -> None:
        self._wanted, self.count, self.told, self.line = wanted, 0, "", 0
        self._inside: list[str] = []

    def visit(self, node: ast.AST) -> ast.AST:
        match node:
            case ast.JoinedStr() | ast.Subscript(value=ast.Name(id="Callable")):
                return node  # words for people; a type
            case ast.AnnAssign():  # an annotation does nothing
                node.value = self.visit(node.value) if node.value else None
                return node
            case ast.FunctionDef() | ast.ClassDef():  # nor does most that decorates
                self._inside.append(node.name)
                if isinstance(node, ast.FunctionDef):
                    node.args.defaults = [self.visit(value) for value in node.args.defaults]
                    node.args.kw_defaults = [value and self.visit(value) for value in node.args.kw_defaults]
                node.body = [self.visit(part) for part in node.body]
                self._inside.pop()
                return node
        for told, made in _changes(node, "__init__" in self._inside):
            self.count += 1
            if self.count - 1 == self._wanted:
                self.line = getattr(node, "lineno", 0)
                self.told = f"{'.'.join(self._inside) or 'module'}: {told}"
                return ast.copy_location(made, node)
        return self.generic_visit(node)


def _changes(node: ast.AST, first: bool) -> Iterator[tuple[str, ast.AST]]:
    """What may be changed at a place; `first`: where an object gets its attributes."""
    yield from _turned_conditions(node)
    yield from _unguarded(node)
    yield from _left_out(node, first)
    yield from _changed_expression(node)


def _turned_conditions(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.If() | ast.IfExp() | ast.While():
            if _negatable(node.test):
                turned = ast.UnaryOp(ast.Not(), node.test)
                yield f"not ({ast.unparse(node.test)})", _with(node, test=ast.copy_location(turned, node.test))
        case ast.comprehension(ifs=[_, *_]):
            for at, test in enumerate(node.ifs):
                if _negatable(test):
                    made = ast.copy_location(ast.UnaryOp(ast.Not(), test), test)
                    yield f"not ({ast.unparse(test)})", _with(node, ifs=_instead(node.ifs, at, made))


def _unguarded(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Without a lock, or without passing over an error."""
    match node:
        case ast.With():
            for at, item in enumerate(node.items):
                if item.optional_vars is None:
                    yield f"without with {ast.unparse(item)}", _without_item(node, at)
        case ast.Try():
            for at, handler in enumerate(node.handlers):
                kind = ast.unparse(handler.type) if handler.type else ""
                yield f"without except {kind}", _without_handler(node, at)
        case ast.ExceptHandler(type=ast.Tuple() as kinds):
            for told, fewer in _fewer(kinds):
                yield told, _with(node, type=fewer)


def _left_out(node: ast.AST, first: bool) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Return(value=ast.expr() as value) if not _is_nothing(value):
            yield f"{ast.unparse(node)} → None", ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()) | ast.Raise():
            yield f"without {ast.unparse(node)}", ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) if not first:
            yield f"without {ast.unparse(node)}", ast.Pass()
        case ast.AugAssign():
            yield f"without {ast.unparse(node)}", ast.Pass()
        case ast.Continue():
            yield "break instead of continue", ast.Break()


def _changed_expression(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Compare(ops=[one]) if type(one) in _TURNED:
            yield _replaced(node, ops=[_TURNED[type(one)]()])
        case ast.Compare(ops=[_, _, *_]):
            for at, one in enumerate(node.ops):
                if type(one) in _TURNED:
                    yield _replaced(node, ops=_instead(node.ops, at, _TURNED[type(one)]()))
        case ast.BoolOp() | ast.BinOp() if type(node.op) in _TURNED:
            yield _replaced(node, op=_TURNED[type(node.op)]())
        case ast.UnaryOp(op=ast.Not()):
            yield f"{ast.unparse(node)} without not", node.operand
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name() | ast.Attribute() | ast.Subscript() | ast.Call()):
            yield f"{ast.unparse(node)} without -", node.operand
        case ast.Call(func=ast.Name(id=name)) if name in _OTHER:
            yield _replaced(node, func=ast.Name(_OTHER[name], ast.Load()))
        case ast.Constant(value=bool(value)):
            yield f"{not value}", ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield f"{value + 1} instead of {value}", ast.Constant(value + 1)
        case ast.Set() | ast.Dict() | ast.List(ctx=ast.Load()):
            yield from _fewer(node)


def _fewer(node: ast.Set | ast.List | ast.Tuple | ast.Dict) -> Iterator[tuple[str, ast.AST]]:
    """Without one of its parts."""
    if isinstance(node, ast.Dict):
        for at, key in enumerate(node.keys):
            told = ast.unparse(key or node.values[at])
            yield f"{{…}} without {told}", _with(node, keys=_instead(node.keys, at), values=_instead(node.values, at))
        return
    for at, part in enumerate(node.elts):
        yield f"[…] without {ast.unparse(part)}", _with(node, elts=_instead(node.elts, at))


def _negatable(test: ast.expr) -> bool:
    """Whether the other way round is no change that is made within the condition as well."""
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return not isinstance(test.ops[0], _NEGATED)
    return not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not))


def _without_item(node: ast.With, at: int) -> ast.AST:
    items = _instead(node.items, at)
    return _with(node, items=items) if items else ast.If(ast.Constant(True), node.body, [])


def _without_handler(node: ast.Try, at: int) -> ast.AST:
    handlers = _instead(node.handlers, at)
    if handlers or node.finalbody:
        after = node.orelse if handlers else []
        return _with(node, handlers=handlers, body=node.body + (node.orelse if not handlers else []), orelse=after)
    return ast.If(ast.Constant(True), [*node.body, *node.orelse], [])


def _is_nothing(node: ast.expr) -> bool:
    """None, or what conditions take for the same: False and no text."""
    return isinstance(node, ast.Constant) and not node.value


def _instead(parts: Sequence[Any], at: int, *made: Any) -> list[Any]:
    return [*parts[:at], *made, *parts[at + 1 :]]


def _replaced(node: ast.expr, **parts: object) -> tuple[str, ast.AST]:
    made = _with(node, **parts)
    return f"{ast.unparse(made)} instead of {ast.unparse(node)}", made


def _with(node: ast.AST, **parts: object) -> ast.AST:
    made = copy.copy(node)
    for name, part in parts.items():
        setattr(made, name, part)
    return made
