"""Rows that rules of the configuration leave out: each is counted, and none without its reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llamafarm.api import DatasetConfig
from llamafarm.data.prepare import prepare
from llamafarm.errors import DataError
from llamafarm_splitters.random import Random, RandomConfig
from llamafarm_tuners.pytorch.config import PytorchConfig


def pair(prompt: str, completion: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion}


CHAT = {
    "messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
}
ROWS = [pair("one", "1"), pair("two " * 9, "2"), pair("three", "3" * 30), pair("one", "1"), pair("mail me", "a@b.de")]


@pytest.mark.parametrize(
    ("filters", "dropped"),
    [
        ({}, {}),
        ({"max_input_length": 35}, {"dropped_long_input": 1}),
        ({"max_input_length": 36}, {}),
        ({"max_output_length": 29}, {"dropped_long_output": 1}),
        ({"remove_duplicates": True}, {"dropped_duplicate": 1}),
        ({"remove_patterns": [r"\S+@\S+", "^thr"]}, {"dropped_pattern": 2}),
        (
            {"remove_duplicates": True, "remove_patterns": ["^one$"], "max_input_length": 10},
            {"dropped_pattern": 2, "dropped_long_input": 1},
        ),
    ],
)
def test_each_rule_leaves_out_its_rows(filters: dict[str, Any], dropped: dict[str, int], write: Any) -> None:
    notices: list[str] = []
    data = prepare(DatasetConfig(path=write(ROWS), filters=filters), None, notice=notices.append)
    assert {name: count for name, count in data.counts.items() if name.startswith("dropped_")} == dropped
    assert (
        data.counts["read"]
        == 5
        == data.counts["trained"] + sum(dropped.values())
        == len(data.train) + sum(dropped.values())
    )
    assert any(notice.startswith("left out by dataset.filters: ") for notice in notices) == bool(dropped)


def test_conversations_with_several_answers_can_be_left_out(write: Any) -> None:
    one = {"messages": CHAT["messages"][:2]}
    config = DatasetConfig(path=write([CHAT, one]), filters={"single_response_only": True})
    data = prepare(config, None, notice=lambda _: None)
    assert (len(data.train), data.counts["dropped_several_answers"]) == (1, 1)


def test_empty_rows_are_refused_or_left_out_and_other_faults_are_refused_always(write: Any) -> None:
    empty = write([pair("a", "b"), pair("", "c"), pair("d", "")])
    with pytest.raises(DataError, match="LF-DATA-013"):
        prepare(DatasetConfig(path=empty), None, notice=lambda _: None)
    data = prepare(DatasetConfig(path=empty, filters={"filter_empty": True}), None, notice=lambda _: None)
    assert data.counts == {"read": 3, "trained": 1, "held_out": 0, "dropped_empty": 2, "copies": 0}
    wrong = write([pair("a", "b"), {"prompt": 7, "completion": ""}], "wrong.jsonl")
    with pytest.raises(DataError):
        prepare(DatasetConfig(path=wrong, filters={"filter_empty": True}), None, notice=lambda _: None)


def test_held_out_rows_of_a_file_and_several_sources_are_filtered_too(write: Any) -> None:
    held_out = write([pair("x", "y" * 50), pair("x", "z")], "held.jsonl")
    sources = [{"path": write(ROWS)}, {"path": write(ROWS, "more.jsonl")}]
    filters = {"remove_duplicates": True, "max_output_length": 29}
    config = DatasetConfig(sources=sources, eval_path=held_out, filters=filters)
    data = prepare(config, None, notice=lambda _: None)
    assert (len(data.train), len(data.eval)) == (3, 1)
    assert (data.counts["dropped_duplicate"], data.counts["dropped_long_output"]) == (5, 3)
    assert data.counts["read"] == 12


def test_rules_that_leave_nothing_are_refused(write: Any) -> None:
    config = DatasetConfig(path=write(ROWS), filters={"remove_patterns": ["."]})
    for splitter in (None, Random(RandomConfig(eval_rows=1))):
        with pytest.raises(DataError, match=r"leave no row to train on: pattern 5.*LF-DATA-250"):
            prepare(config, splitter, notice=lambda _: None)


def test_a_pattern_that_never_ends_is_stopped(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamafarm.data.filters._SECONDS", 0.2)
    config = DatasetConfig(path=write([pair("a" * 40 + "!", "b")]), filters={"remove_patterns": ["(a+)+$"]})
    with pytest.raises(DataError, match=r"rows.jsonl:1: a pattern .* takes more than 0.2 seconds.*LF-DATA-251"):
        prepare(config, None, notice=lambda _: None)


def test_what_is_no_pattern_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"'\(' is no regular expression"):
        DatasetConfig(filters={"remove_patterns": ["("]})


def test_the_other_name() -> None:
    assert PytorchConfig.aliases["data_preprocessing"] == "dataset.filters"


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numbers=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    limit=st.integers(1, 9),
    unique=st.booleans(),
)
def test_every_row_is_trained_held_out_or_dropped(numbers: list[int], limit: int, unique: bool, write: Any) -> None:
    path = write([pair("q", "x" * number) for number in [*numbers, 1]])
    config = DatasetConfig(path=path, filters={"max_output_length": limit, "remove_duplicates": unique})
    data = prepare(config, None, notice=lambda _: None)
    dropped = sum(count for name, count in data.counts.items() if name.startswith("dropped_"))
    assert data.counts["read"] == len(numbers) + 1 == len(data.train) + dropped
    kept = [len(example.messages[-1].content) for example in data.train]
    expected = [number for number in [*numbers, 1] if number <= limit]
    assert kept == (list(dict.fromkeys(expected)) if unique else expected)
