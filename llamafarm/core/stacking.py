"""Which methods combine, from what they declare of themselves: refused with the reason before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from llamafarm.api.components import FineTuner, Method
from llamafarm.errors import Problem

Stack = Sequence[Method[Any]]


def stack_problems(tuner: FineTuner[Any], methods: Stack, where: str) -> Iterator[Problem]:
    """One method brings the trainable parameters; others may stack on it; the tuner must know each kind."""
    for one, other in combinations(methods, 2):
        problem = clash(one, other)
        if problem:
            yield Problem(problem.id, problem.message, where, problem.hint)
    if tuner.adapter_kinds and methods and all(method.stacks for method in methods):
        names = ", ".join(repr(method.name) for method in methods)
        yield Problem(
            "LF-STRATEGY-033", f"{names} trains nothing by itself", where, "stack it on a method such as lora"
        )
    for method in methods:
        kind = method.adapter().kind
        if kind not in tuner.adapter_kinds:
            known = ", ".join(sorted(tuner.adapter_kinds))
            message = f"fine-tuner {tuner.name!r} cannot run method {method.name!r} (kind {kind!r})"
            yield Problem("LF-STRATEGY-034", message, where, f"it runs: {known}" if known else "it takes no method")


def clash(one: Method[Any], other: Method[Any]) -> Problem | None:
    """Why two methods do not combine, in whatever order; None when they do."""
    if not one.stacks and not other.stacks:
        message = f"{one.name!r} and {other.name!r} do not stack: each brings its own trainable parameters"
        return Problem("LF-STRATEGY-032", message, hint="keep one of them")
    if one.name == other.name:
        return Problem("LF-STRATEGY-050", f"{one.name!r} is in the stack twice", hint="keep one of them")
    for first, second in ((one, other), (other, one)):
        excluded = [reason for trait, reason in first.excludes.items() if trait in traits(second)]
        if excluded:
            message = f"{first.name!r} and {second.name!r} do not combine: {excluded[0]}"
            return Problem("LF-STRATEGY-051", message, hint="keep one of them")
        if width := _unbearable(first, second):
            message = f"{first.name!r} stores the base in {width} bits, which {second.name!r} cannot stand on"
            return Problem("LF-STRATEGY-052", message, hint="keep one of them")
    return None


def traits(method: Method[Any]) -> frozenset[str]:
    """What others may exclude: the method's name, and what it does to the model."""
    spec = method.adapter()
    found = {
        "quantized-base": bool(spec.quantization),
        "changes-base": spec.changes_base,
        "virtual-tokens": spec.virtual_tokens > 0,
    }
    return frozenset({method.name, *(trait for trait, on in found.items() if on)})


def stacking_table(methods: Stack) -> str:
    """Markdown: what combines with each method that brings trainable parameters."""
    stacking = sorted((method for method in methods if method.stacks), key=lambda method: method.name)
    bringing = sorted((method for method in methods if not method.stacks), key=lambda method: method.name)
    head = ["method", "another such method", *(f"`{method.name}`" for method in stacking)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for method in bringing:
        others = [_cell(clash(method, other)) for other in bringing]
        assert len(set(others)) == 1, "methods that bring parameters do not all clash: the table needs more columns"
        cells = [f"`{method.name}`", others[0], *(_cell(clash(method, other)) for other in stacking)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(problem: Problem | None) -> str:
    return f"no: {problem.message.rpartition(': ')[2]}" if problem else "yes"


def _unbearable(first: Method[Any], second: Method[Any]) -> int | None:
    """The width of the first one's quantized base, if the second cannot stand on it."""
    asked, bits = first.adapter().quantization, second.adapter().bits
    width = 4 if asked.get("load_in_4bit") else 8 if asked.get("load_in_8bit") else None
    return width if width is not None and width not in bits else None
