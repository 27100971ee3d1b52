"""What is stored comes back as it was, whether it stands in memory or in a file, and takes no memory by the row."""

from __future__ import annotations

import os
import subprocess
import sys
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.api import Example, Message, RowRef
from llamafarm.data import stored
from llamafarm.data.packing import join, pack
from llamafarm.data.stored import Examples, Records, TokenRows, in_order, joined, lengths_of
from llamafarm.data.tokens import TokenizedRow


@pytest.fixture(params=[0, 100, 10**6], ids=["each in the file", "some in the file", "in memory"])
def limit(request: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> int:
    monkeypatch.setenv("LLAMAFARM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(Records.__init__, "__defaults__", (request.param,))
    return int(request.param)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
TOOLS = st.lists(st.dictionaries(st.text(), ANYTHING, max_size=3), max_size=2).map(tuple)
TEXTS = st.text(st.characters())  # halves of surrogate pairs too
MESSAGES = st.lists(
    st.builds(
        Message,
        role=st.sampled_from(["system", "user", "assistant", "tool"]),
        content=TEXTS,
        train=st.none() | st.booleans(),
        tool_calls=TOOLS,
        name=st.none() | TEXTS,
        tool_call_id=st.none() | TEXTS,
    ),
    max_size=3,
).map(tuple)
EXAMPLES = st.builds(
    Example,
    ref=st.builds(RowRef, TEXTS, st.integers(1, 2**70)),
    messages=MESSAGES,
    text=st.none() | TEXTS,
    prompt=st.none() | TEXTS,
    difficulty=st.none() | st.floats(allow_nan=False),
    tools=TOOLS,
    task=st.none() | TEXTS,
    chosen=MESSAGES,
    rejected=MESSAGES,
    label=st.none() | st.booleans(),
)


def same(one: Any, other: Any) -> bool:
    """Equal, and of equal kinds: 1, 1.0 and True are not the same, nor are a list and a tuple."""
    return repr(one) == repr(other)


@given(st.lists(EXAMPLES, max_size=5), st.sampled_from([0, 100, 10**6]))
def test_examples_come_back(examples: list[Example], most: int) -> None:
    before = Records.__init__.__defaults__
    Records.__init__.__defaults__ = (most,)
    try:
        kept = Examples(examples)
    finally:
        Records.__init__.__defaults__ = before
    assert same(list(kept), examples)
    assert same([kept[number] for number in range(len(kept))], examples)
    assert same(list(kept.chosen(range(len(examples))[::-1])), examples[::-1])


def test_what_json_would_change_is_kept_as_it_is(limit: int) -> None:
    class Odd(str):
        __slots__ = ()

    strange = [{"a": (1, 2)}, {"b": Odd("x")}, {"c": 2**80}, {"d": "\ud800"}, {1: "e"}, {"f": float("inf")}]
    examples = [Example(RowRef("a", 1), tools=(tool,)) for tool in strange]
    for example, back in zip(examples, Examples(examples), strict=True):
        assert back is example


def rows(count: int) -> list[TokenizedRow]:
    return [
        TokenizedRow(list(range(at, 2 * at + 1)), [-100 if token % 3 else token for token in range(at, 2 * at + 1)], at)
        for at in range(count)
    ]


def test_rows_come_back(limit: int) -> None:
    kept = TokenRows(rows(30))
    assert kept == rows(30)
    assert rows(30) == kept
    assert kept != rows(29)
    assert kept != 30
    assert [row.example for row in kept] == list(kept.examples) == list(range(30))
    assert kept[3:5] == rows(30)[3:5]
    assert kept[-1] == rows(30)[-1]
    assert all(type(token) is int for row in kept for token in [*row.input_ids, *row.labels])
    assert list(lengths_of(kept)) == [len(row.input_ids) for row in rows(30)] == lengths_of(rows(30))
    with pytest.raises(IndexError):
        kept[30]


def test_an_order_and_one_behind_the_other(limit: int) -> None:
    kept, more = TokenRows(rows(5)), rows(8)[5:]
    assert joined(kept, more) == rows(8)
    assert in_order(kept, [4, 0, 4]) == [rows(5)[at] for at in (4, 0, 4)]


def test_packs_are_joined_when_they_are_asked_for(limit: int) -> None:
    kept = pack(TokenRows(rows(12)), 20, seed=3)
    plain = pack(rows(12), 20, seed=3)
    assert kept == plain
    assert lengths_of(kept) == [len(one.input_ids) for one in plain]
    assert kept[0] == join([TokenizedRow(plain[0].input_ids, plain[0].labels)]) or len(plain[0].positions) > 1


def test_the_file_has_no_name(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAFARM_HOME", str(tmp_path / "home"))
    records = Records(limit=3)
    for record in (b"ab", b"cde", b"", b"f"):
        records.append(record)
    assert [records[at] for at in range(4)] == [b"ab", b"cde", b"", b"f"]
    assert [records.size(at) for at in range(4)] == [2, 3, 0, 1]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("part", [None, 0, 5])
def test_a_disk_that_refuses_keeps_them_in_memory(monkeypatch: pytest.MonkeyPatch, part: int | None) -> None:
    right = os.pwrite

    def refuse(file: int, given: bytearray, at: int) -> int:
        if at < 200:
            return right(file, given, at)
        if part is None:
            raise OSError(28, os.strerror(28))
        return right(file, given[:part], at)

    monkeypatch.setattr(stored.os, "pwrite", refuse)
    records = Records(limit=1)
    for at in range(50):
        records.append(bytes([at] * at))
    assert [records[at] for at in range(50)] == [bytes([at] * at) for at in range(50)]


GROWS = """
import sys
from pathlib import Path
from llamafarm.api import DatasetConfig
from llamafarm.data.prepare import prepare
from llamafarm.data import stored
stored.Records.__init__.__defaults__ = (2**20,)
found = prepare(DatasetConfig(path=sys.argv[1]), None, notice=lambda _: None)
rows = stored.TokenRows()
for number, example in enumerate(found.train):
    ids = list(range(300, 300 + len(example.messages[0].content)))
    rows.append(stored.TokenizedRow(ids, ids, number))
most = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(sum(len(row.input_ids) for row in rows), int(most.split()[1]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells it there")
def test_memory_does_not_grow_with_the_rows(tmp_path: Any) -> None:
    """Eight times the rows, 28 MB more of text, and 140 MB more as lists of numbers: some 200 bytes a row stay."""
    took = []
    for count in (4_000, 32_000):
        path = tmp_path / f"{count}.jsonl"
        text = "word " * 200
        lines = (f'{{"messages": [{{"role": "user", "content": "{text}{at}"}}, ' for at in range(count))
        path.write_text("\n".join(line + '{"role": "assistant", "content": "yes"}]}' for line in lines))
        ended = subprocess.run(
            [sys.executable, "-c", GROWS, str(path)],
            env={**os.environ, "LLAMAFARM_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            check=True,
        )
        tokens, mib = map(int, ended.stdout.split())
        assert tokens > count * 1000
        took.append(mib)
    assert took[1] - took[0] < 16


def test_tokens_beyond_32_bits_are_no_tokens() -> None:
    with pytest.raises(OverflowError):
        TokenRows([TokenizedRow([2**31], [2**31])])
    assert array("i").itemsize == 4
