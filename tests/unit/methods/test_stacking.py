"""What combines, cell by cell, and what the documents say of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import pytest

from llamafarm.api import AdapterSpec, Method, NoConfig
from llamafarm.core.registry import load_registry
from llamafarm.core.stacking import clash, stacking_table, traits
from llamafarm_methods.bridged import BRIDGED
from llamafarm_methods.config import QloraConfig, QuantizationConfig
from llamafarm_methods.qlora import Qlora

DOCUMENT = Path(__file__).parents[3] / "docs/methods.md"


class Scaling(Method[NoConfig]):
    name = "scaling"
    stacks = True
    excludes: ClassVar = {"virtual-tokens": "it counts positions from the first", "changes-base": "it looks at weights"}

    def adapter(self):
        return AdapterSpec("scaling", bits=frozenset({4}))

    def apply(self, model, run):
        return model


def methods():
    family = load_registry(()).family("method")
    ours = [found.component for found in family.values() if found.plugin.distribution == "llamafarm"]
    return {component.name: component(component.Config()) for component in ours}


ALL = methods()


@pytest.mark.parametrize("one", ALL)
@pytest.mark.parametrize("other", ALL)
def test_every_cell_for_the_reason_that_was_declared(one, other):
    first, second = ALL[one], ALL[other]
    problem = clash(first, second)
    assert (problem is None) == (clash(second, first) is None), "the order does not matter"
    if not first.stacks and not second.stacks:
        assert problem.id == "LF-STRATEGY-032"
    elif one == other:
        assert problem.id == "LF-STRATEGY-050"
    else:
        declared = set(first.excludes) & traits(second) | set(second.excludes) & traits(first)
        assert (problem is not None and problem.id == "LF-STRATEGY-051") == bool(declared)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lora", None),
        ("qlora", None),
        ("ia3", None),
        ("full", "LF-STRATEGY-051"),
        ("freeze", "LF-STRATEGY-051"),
        ("prompt-tuning", "LF-STRATEGY-051"),
    ],
)
def test_a_method_that_declares_what_it_excludes(name, expected):
    problem = clash(Scaling(NoConfig()), ALL[name])
    assert (problem.id if problem else None) == expected
    assert clash(Scaling(NoConfig()), Scaling(NoConfig())).id == "LF-STRATEGY-050"


def test_a_base_of_a_width_that_another_cannot_stand_on():
    eight = Qlora(QloraConfig(quantization=QuantizationConfig(load_in_8bit=True)))
    problem = clash(Scaling(NoConfig()), eight)
    assert problem.id == "LF-STRATEGY-052"
    assert "in 8 bits, which 'scaling' cannot stand on" in problem.message


def test_the_table_says_what_clashes():
    table = stacking_table([ALL["lora"], ALL["full"], Scaling(NoConfig())])
    assert "| `lora` | no: each brings its own trainable parameters | yes |" in table
    assert "| `full` | no: each brings its own trainable parameters | no: it looks at weights |" in table


def bridged_table():
    lines = ["| type | what it does | options with their defaults | base in bits |", "|---|---|---|---|"]
    for component in sorted(BRIDGED, key=lambda component: component.name):
        bridge = component.bridge
        does = " ".join((component.__doc__ or "").split()).rstrip(".")
        does = re.sub(r"\((https\S+)\)", r"([paper](\1))", does)
        options = ", ".join(f"`{name}` {_written(default)}" for name, default in bridge.options.items()) or "none"
        bits = ", ".join(map(str, sorted(bridge.bits))) or "as it is"
        lines.append(f"| `{bridge.type}` | {does} | {options} | {bits} |")
    return "\n".join(lines)


def _written(default):
    return "none" if default in ((), None) else str(default).lower() if isinstance(default, bool) else f"{default}"


@pytest.mark.parametrize(
    ("mark", "table"), [("bridged", bridged_table()), ("stacking", stacking_table(list(ALL.values())))]
)
def test_the_document_has_the_table_that_is_derived(mark, table):
    text = DOCUMENT.read_text(encoding="utf-8")
    found = re.search(rf"<!-- {mark} -->\n(.*?)\n?<!-- end -->", text, re.DOTALL)
    assert found[1] == table, f"docs/methods.md, put this between <!-- {mark} --> and <!-- end -->:\n{table}"
