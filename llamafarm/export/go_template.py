"""The part of Go's text templates that Ollama's Modelfiles use: text, fields, variables, if, range, a few functions.

Semantics are those of the documentation of Go's package text/template. Anything beyond this part is refused, so that
a comparison never rests on a guess.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamafarm.errors import ModelError

_ACTION = re.compile(r"\{\{(?P<left>- )?(?P<body>.*?)(?P<right> -)?\}\}", re.DOTALL)
_WORD = re.compile(
    r"""\s*(?P<word>"(?:\\.|[^"\\])*"|`[^`]*`|:=|=|[(),|]|-?\d+|\$?[\w]*(?:\.\w+)+|\$\w*|\.|\w+)""", re.DOTALL
)


@dataclass(slots=True)
class _Block:
    """`if` or `range`, or the whole text: branches are (condition, nodes)."""

    kind: str
    branches: list[tuple[list[str], list[Any]]] = field(default_factory=list)


def render(template: str, data: Mapping[str, Any]) -> str:
    """Execute a template.

    Args:
        template: Its text.
        data: What `.` and `$` stand for.

    Raises:
        ModelError: If it uses something that is not understood here.
    """
    root = _parse(template)
    out: list[str] = []
    _Run(data, out).nodes(root.branches[0][1], data, {"$": data})
    return "".join(out)


def _refuse(what: str) -> ModelError:
    return ModelError.of("LF-MODEL-118", f"the template uses {what}, which is not understood here")


def _parse(template: str) -> _Block:
    root = _Block("text", [([], [])])
    stack = [root]
    for piece in _pieces(template):
        if isinstance(piece, str):
            stack[-1].branches[-1][1].append(piece)
            continue
        head = piece[0] if piece else ""
        if head in ("if", "range"):
            block = _Block(head, [(piece[1:], [])])
            stack[-1].branches[-1][1].append(block)
            stack.append(block)
        elif head == "else" and len(stack) > 1:
            condition = piece[2:] if piece[1:2] == ["if"] else ["true"]
            stack[-1].branches.append((condition, []))
        elif head == "end" and len(stack) > 1:
            stack.pop()
        elif head in ("else", "end", "with", "define", "template", "block", "break", "continue"):
            raise _refuse(f"{{{{ {head} }}}} here")
        elif piece:
            stack[-1].branches[-1][1].append(piece)
    if len(stack) > 1:
        raise _refuse(f"an {stack[-1].kind} without end")
    return root


def _pieces(template: str) -> list[str | list[str]]:
    """Texts and actions, blanks trimmed where an action says so."""
    pieces: list[str | list[str]] = []
    at, trim = 0, False
    for match in _ACTION.finditer(template):
        text = template[at : match.start()]
        text = text.lstrip() if trim else text
        pieces.append(text.rstrip() if match["left"] else text)
        body = match["body"].strip()
        pieces.append([] if body.startswith("/*") else _words(body))
        at, trim = match.end(), bool(match["right"])
    rest = template[at:]
    pieces.append(rest.lstrip() if trim else rest)
    return pieces


def _words(body: str) -> list[str]:
    words, at = [], 0
    while body[at:].strip():
        match = _WORD.match(body, at)
        if match is None:
            raise _refuse(repr(body[at:].strip()[:40]))
        words.append(match["word"])
        at = match.end()
    return words


@dataclass(slots=True)
class _Run:
    data: Mapping[str, Any]
    out: list[str]

    def nodes(self, nodes: Sequence[Any], dot: Any, names: dict[str, Any]) -> None:
        for node in nodes:
            if isinstance(node, str):
                self.out.append(node)
            elif isinstance(node, _Block):
                self.block(node, dot, names)
            elif node[1:2] in ([":="], ["="]):
                names[node[0]] = self.value(node[2:], dot, names)
            else:
                value = self.value(node, dot, names)
                self.out.append("" if value is None else str(value).lower() if isinstance(value, bool) else str(value))

    def block(self, block: _Block, dot: Any, names: dict[str, Any]) -> None:
        if block.kind == "range":
            self.range(block, dot, names)
            return
        for condition, nodes in block.branches:
            if condition == ["true"] or self.value(condition, dot, names):
                self.nodes(nodes, dot, dict(names))
                return

    def range(self, block: _Block, dot: Any, names: dict[str, Any]) -> None:
        words, nodes = block.branches[0]
        variables: list[str] = []
        if ":=" in words:
            at = words.index(":=")
            variables, words = [word for word in words[:at] if word != ","], words[at + 1 :]
        items = self.value(words, dot, names) or []
        pairs = list(items.items()) if isinstance(items, Mapping) else list(enumerate(items))
        for key, item in pairs:
            inner = dict(names)
            inner |= dict(zip(variables, [key, item][-len(variables) :], strict=True)) if variables else {}
            self.nodes(nodes, item, inner)
        if not pairs and len(block.branches) > 1:
            self.nodes(block.branches[1][1], dot, dict(names))

    def value(self, words: Sequence[str], dot: Any, names: Mapping[str, Any]) -> Any:
        """A pipeline: each stage's value is the last argument of the next."""
        stages: list[list[str]] = [[]]
        depth = 0
        for word in words:
            depth += (word == "(") - (word == ")")
            if word == "|" and depth == 0:
                stages.append([])
            else:
                stages[-1].append(word)
        piped: list[Any] = []
        for stage in stages:
            piped = [self.call(stage, piped, dot, names)]
        return piped[0]

    def call(self, words: list[str], piped: list[Any], dot: Any, names: Mapping[str, Any]) -> Any:
        if not words:
            raise _refuse("an empty action")
        head = words[0]
        if re.fullmatch(r"[a-z]\w*", head) and head not in ("true", "false", "nil"):
            return _function(head, [*self.operands(words[1:], dot, names), *piped])
        found = self.operands(words, dot, names)
        if len(found) != 1:
            raise _refuse(repr(" ".join(words)))
        return found[0]

    def operands(self, words: Sequence[str], dot: Any, names: Mapping[str, Any]) -> list[Any]:
        found, index = [], 0
        while index < len(words):
            word = words[index]
            if word == "(":
                end = _closing(words, index)
                found.append(self.value(words[index + 1 : end], dot, names))
                index = end
            else:
                found.append(_operand(word, dot, names))
            index += 1
        return found


def _closing(words: Sequence[str], start: int) -> int:
    depth = 0
    for index in range(start, len(words)):
        depth += (words[index] == "(") - (words[index] == ")")
        if depth == 0:
            return index
    raise _refuse("a bracket without its end")


def _operand(word: str, dot: Any, names: Mapping[str, Any]) -> Any:
    if word[0] == '"':
        return json.loads(word)
    if word[0] == "`":
        return word[1:-1]
    if re.fullmatch(r"-?\d+", word):
        return int(word)
    if word in ("true", "false", "nil"):
        return {"true": True, "false": False, "nil": None}[word]
    root, *path = word.split(".")
    if root and not root.startswith("$"):
        raise _refuse(repr(word))
    if root and root not in names:
        raise _refuse(f"the variable {root} that is not set")
    value = names[root] if root else dot
    for name in filter(None, path):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _function(name: str, values: list[Any]) -> Any:
    if name == "and":
        return next((value for value in values if not value), values[-1])
    if name == "or":
        return next((value for value in values if value), values[-1])
    if name == "slice" and len(values) in (2, 3):
        return values[0][values[1] : values[2] if len(values) == 3 else None]
    simple: dict[tuple[str, int], Callable[..., Any]] = {
        ("eq", 2): lambda a, b: a == b,
        ("ne", 2): lambda a, b: a != b,
        ("lt", 2): lambda a, b: a < b,
        ("le", 2): lambda a, b: a <= b,
        ("gt", 2): lambda a, b: a > b,
        ("ge", 2): lambda a, b: a >= b,
        ("not", 1): lambda a: not a,
        ("len", 1): lambda a: len(a or ()),
        ("index", 2): lambda a, b: a[b],
        ("json", 1): lambda a: json.dumps(a, ensure_ascii=False, separators=(",", ":")),
    }
    if name == "eq" and len(values) > 2:
        return values[0] in values[1:]
    if (name, len(values)) not in simple:
        raise _refuse(f"the function {name} with {len(values)} arguments")
    return simple[name, len(values)](*values)
