"""What users do wrong: each mistake is named with its id, its place and what to do, and leaves nothing behind.

One case for each error that the tests of its own module do not name.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llamafarm.core.lock import OwnerLock
from llamafarm.core.record import OWN

ROW = '{"instruction": "open the door", "output": "opened"}\n'
ROWS = "".join(f'{{"instruction": "open door {number}", "output": "door {number}"}}\n' for number in range(5))
STRATEGY = """\
fine_tuner:
  type: pytorch
  config:
    base_model: builtin:tiny
    dataset: data.jsonl
    method: {type: lora, r: 4}
"""


@dataclass(frozen=True)
class Case:
    """A command that is refused.

    Attributes:
        id: The error.
        code: The exit code.
        argv: The command.
        shown: What must be among what is shown: place, expectation, hint.
        given: Files besides `s.yaml` and `data.jsonl`.
        writing: The folder that another run writes to meanwhile.
    """

    id: str
    code: int
    argv: str
    shown: tuple[str, ...]
    given: Mapping[str, str | bytes] = field(default_factory=dict)
    writing: str = ""


def strategy(**changes: str) -> str:
    """The strategy with other lines for some keys; an empty one leaves the key out."""
    lines = []
    for line in STRATEGY.splitlines():
        key = line.strip().partition(":")[0]
        if key not in changes:
            lines.append(line)
        elif changes[key]:
            lines.append(line[: len(line) - len(line.lstrip())] + changes.pop(key))
        else:
            changes.pop(key)
    lines += [f"    {text}" for text in changes.values()]
    return "\n".join(lines) + "\n"


def manifest(**facts: object) -> str:
    return json.dumps({"run_id": "earlier", "status": "completed", "host": socket.gethostname(), **facts})


@contextmanager
def written(folder: Path) -> Iterator[None]:
    """Another run owns the folder: the lock says so, the manifest of a killed run would say the same."""
    (folder / OWN).mkdir(parents=True)
    with OwnerLock(folder, "earlier"):
        yield


TRAIN = "train -s s.yaml"
CASES = [
    Case(
        "LF-STRATEGY-001",
        2,
        "validate odd",
        ("strategies/odd.yaml", "cannot read"),
        {"strategies/odd.yaml/x": "a folder"},
    ),
    Case("LF-STRATEGY-010", 2, "validate sx.yaml", ("sx.yaml", "did you mean 's.yaml'?")),
    Case("LF-STRATEGY-011", 2, "validate quickstrat", ("did you mean 'quickstart'?",)),
    Case("LF-STRATEGY-017", 2, "validate s.yaml --set training.seed=[1", ("--set training.seed", "'[1'")),
    Case(
        "LF-STRATEGY-018",
        2,
        "validate two.yaml:frist",
        ("two.yaml", "did you mean 'first'?"),
        {"two.yaml": "strategies:\n- {name: first}\n- {name: second}\n"},
    ),
    Case(
        "LF-STRATEGY-029",
        2,
        "validate bad.yaml",
        ("bad.yaml:6:13", "layers_pattern has no effect without layers_to_transform"),
        {"bad.yaml": strategy(method="method: {type: lora, layers_pattern: layers}")},
    ),
    Case("LF-STRATEGY-030", 2, "train -s bad.yaml", ("--dataset FILE",), {"bad.yaml": strategy(dataset="")}),
    Case("LF-STRATEGY-031", 2, "train -s bad.yaml", ("--model NAME",), {"bad.yaml": strategy(base_model="")}),
    Case("LF-STRATEGY-032", 2, f"{TRAIN} --set method=[lora,full]", ("'lora' and 'full'", "keep one of them")),
    Case("LF-MODEL-003", 4, f"{TRAIN} --model builtin:tny", ("no built-in model 'tny'",)),
    Case(
        "LF-PLUGIN-005",
        5,
        "validate bad.yaml",
        ("bad.yaml:7:", "is no requirement"),
        {"bad.yaml": STRATEGY + "plugins: ['!!']\n"},
    ),
    Case(
        "LF-PLUGIN-070",
        5,
        "train -s bad.yaml",
        ("type: pytorch", "llamafarm backends setup llamafactory"),
        {"bad.yaml": "fine_tuner: {type: llamafactory, config: {base_model: 'builtin:tiny', dataset: data.jsonl}}\n"},
    ),
    Case("LF-RUN-001", 9, f"{TRAIN} -o data.jsonl", ("data.jsonl", "use --output")),
    Case("LF-RUN-002", 9, f"{TRAIN} -o mine", ("mine", "no run of ours"), {"mine/thesis.tex": "years of work"}),
    Case(
        "LF-RUN-003",
        9,
        f"{TRAIN} -o live --overwrite",
        (f"earlier is writing here (process {os.getpid()}",),
        {"live/llamafarm/manifest.json": manifest(status="running")},
        writing="live",
    ),
    Case(
        "LF-RUN-004",
        9,
        f"{TRAIN} -o old",
        ("earlier (completed)", "--overwrite"),
        {"old/llamafarm/manifest.json": manifest()},
    ),
    Case(
        "LF-DATA-000", 3, f"{TRAIN} -d many.jsonl", ("many.jsonl:1", "and 5 more problems"), {"many.jsonl": "x\n" * 25}
    ),
    Case("LF-DATA-025", 3, "datasplit data.jsonl --splitter random --set eval_rows=9", ("hold out at most 4",)),
    Case("LF-USAGE-008", 2, "datasplit data.jsonl --splitter hash --set sed=1", ("no option 'sed'",)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_refused(case: Case, refuse: Callable[..., object]) -> None:
    given = {"s.yaml": STRATEGY, "data.jsonl": ROWS, **case.given}
    with written(Path(case.writing)) if case.writing else nullcontext():
        refusal = refuse(*case.argv.split(), given=given)
    assert case.id in refusal.shown, refusal.shown
    for part in case.shown:
        assert part in refusal.shown, refusal.shown
    assert refusal.code == case.code
    assert refusal.after == refusal.before
