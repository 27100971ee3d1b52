"""From configuration to both sides: nothing is lost, nothing stands on both, everything is said."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.api import DatasetConfig, DataSplitter, NoConfig, PreparedData, Row
from llamafarm.data.assign import assign
from llamafarm.data.prepare import prepare
from llamafarm.data.siblings import split_names
from llamafarm.data.split import split_files
from llamafarm.errors import DataError, PluginError
from llamafarm_splitters.hash import Hash, HashConfig
from llamafarm_splitters.random import Random, RandomConfig


class Halves(DataSplitter[NoConfig]):
    """Holds out every second row that it sees."""

    name = "halves"

    def held_out(self, rows: Iterable[Row]) -> Sequence[bool]:
        return [number % 2 == 1 for number, _ in enumerate(rows)]


def pair(number: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": f"q{number}", "completion": f"a{number}", **more}


def prepared(splitter: Any = None, notices: list[str] | None = None, **dataset: Any) -> PreparedData:
    said = [] if notices is None else notices
    return prepare(DatasetConfig(**dataset), splitter, notice=said.append)


def questions(side: Iterable[Any]) -> list[str]:
    return [example.messages[0].content for example in side]


def balanced(counts: Any) -> bool:
    dropped = sum(count for name, count in counts.items() if name.startswith("dropped_"))
    return bool(counts["read"] == counts["trained"] + counts["held_out"] + dropped)


def test_without_a_splitter_all_rows_are_trained_on(write: Any) -> None:
    notices: list[str] = []
    path = write([pair(1), pair(2), pair(1)])
    data = prepared(None, notices, path=path)
    assert questions(data.train) == ["q1", "q2", "q1"]
    assert data.eval == ()
    assert data.counts == {"read": 3, "trained": 3, "held_out": 0, "copies": 1}
    assert notices == [f"{path}: rows are prompt-completion (columns 'prompt' and 'completion')"]
    assert [str(example.ref) for example in data.train] == [f"{path}:{line}" for line in (1, 2, 3)]


def test_a_splitter_sees_each_content_once_and_copies_follow(write: Any) -> None:
    notices: list[str] = []
    data = prepared(Halves(NoConfig()), notices, path=write([pair(1), pair(2), pair(1, id=7), pair(2), pair(3)]))
    assert questions(data.train) == ["q1", "q1", "q3"]
    assert questions(data.eval) == ["q2", "q2"]
    assert data.counts == {"read": 5, "trained": 3, "held_out": 2, "copies": 2}
    assert any("2 of 5 rows are copies: each is on the side of its first" in notice for notice in notices)
    assert any("not used: column 'id'" in notice for notice in notices)


def test_texts_are_told_apart(write: Any) -> None:
    data = prepared(Halves(NoConfig()), path=write([{"text": "a"}, {"text": "b"}, {"text": "a"}]))
    assert [[example.text for example in side] for side in (data.train, data.eval)] == [["a", "a"], ["b"]]
    assert data.counts["copies"] == 1


def test_held_out_rows_of_a_file_are_not_trained_on(write: Any) -> None:
    notices: list[str] = []
    path = write([pair(1), pair(2), pair(2), pair(3)])
    chat = [{"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}]
    held_out = write([{"messages": chat}], "e.jsonl")
    data = prepared(Halves(NoConfig()), notices, path=path, eval_path=held_out)
    assert questions(data.train) == ["q1", "q3"]
    assert questions(data.eval) == ["q2"]
    assert data.counts == {"read": 5, "trained": 2, "held_out": 1, "dropped_also_held_out": 2, "copies": 0}
    assert balanced(data.counts)
    assert f"2 of 4 rows to train on also stand in {held_out}: not trained on" in notices


def test_nothing_left_to_train_on_is_refused(write: Any) -> None:
    with pytest.raises(DataError, match=r"all 2 rows to train on also stand in .*\[LF-DATA-021\]"):
        prepared(path=write([pair(1), pair(1)]), eval_path=write([pair(1)], "e.jsonl"))


def test_problems_of_both_files_come_together(write: Any) -> None:
    path, held_out = write(b'{"prompt":"q"}\nx\n{"prompt":"q","completion":"a"}'), write(b"y\n", "e.jsonl")
    with pytest.raises(DataError) as error:
        prepared(path=path, eval_path=held_out)
    assert {problem.where for problem in error.value.problems} == {f"{path}:1", f"{path}:2:1", f"{held_out}:1:1"}


def test_every_bad_row_is_named(write: Any) -> None:
    rows = [pair(1), {"prompt": "q"}, {"text": "t"}, pair(2), {"prompt": 7, "completion": "a"}]
    path = write(rows)
    with pytest.raises(DataError) as error:
        prepared(Halves(NoConfig()), path=path)
    expected = [(f"{path}:2", "LF-DATA-012"), (f"{path}:3", "LF-DATA-011"), (f"{path}:5", "LF-DATA-014")]
    assert [(problem.where, problem.id) for problem in error.value.problems] == expected


def test_a_form_that_nobody_knows_is_said_once(write: Any) -> None:
    path = write([{"a": 1}] * 50)
    with pytest.raises(DataError) as error:
        prepared(path=path)
    assert [problem.where for problem in error.value.problems] == [f"{path}:1"]


@pytest.mark.parametrize("first", [True, False])
def test_what_is_said_of_a_row_does_not_depend_on_its_place(first: bool, write: Any) -> None:
    rows = [{"prompt": "q"}, pair(1)] if first else [pair(1), {"prompt": "q"}]
    path = write(rows)
    with pytest.raises(DataError) as error:
        prepared(path=path)
    (problem,) = error.value.problems
    assert (problem.where, problem.message) == (f"{path}:{1 if first else 2}", "'completion' is missing")


def test_a_form_can_be_given(write: Any) -> None:
    path = write([{"instruction": "q", "output": "a", "text": "q a"}])
    assert prepared(path=path).train[0].messages
    assert prepared(path=path, format="text").train[0].text == "q a"
    with pytest.raises(DataError, match="the row is alpaca"):
        prepared(path=path, format="messages")


def test_the_first_rows_alone_can_be_used(write: Any) -> None:
    data = prepared(path=write([pair(number) for number in range(9)]), max_samples=4)
    assert data.counts["read"] == 4
    assert questions(data.train) == ["q0", "q1", "q2", "q3"]


@pytest.mark.parametrize("rows", [[pair(1)], [pair(1)] * 5])
def test_too_few_distinct_rows_are_refused(rows: list[Any], write: Any) -> None:
    with pytest.raises(DataError, match=rf"{len(rows)} rows, 1 of them distinct: too few .*\[LF-DATA-020\]"):
        prepared(Halves(NoConfig()), path=write(rows))


def test_no_dataset_is_said() -> None:
    with pytest.raises(DataError, match=r"no dataset given; name a file by dataset.path .*\[LF-DATA-024\]"):
        prepared()


def test_generated_rows_are_rows(write: Any) -> None:
    notices: list[str] = []
    generate = {"name": "smart-home", "size": 30, "seed": 3}
    data = prepared(Random(RandomConfig()), notices, generate=generate)
    assert data.counts["read"] == 30
    assert data.counts["held_out"] == 3
    assert data.digest == prepared(Random(RandomConfig()), generate=generate).digest
    named = prepared(None, notices, path=write([pair(1)]), generate=generate)
    assert named.counts["read"] == 1
    assert any("dataset.generate is not used" in notice for notice in notices)


class TestAnEarlierSplit:
    def test_of_the_file_is_used_and_said(self, write: Any, tmp_path: Path) -> None:
        notices: list[str] = []
        write([pair(1)], "data_train.jsonl")
        write([pair(2)], "data_eval.jsonl")
        path = str(tmp_path / "data.jsonl")
        data = prepared(Halves(NoConfig()), notices, path=path)
        assert (questions(data.train), questions(data.eval)) == (["q1"], ["q2"])
        assert any(f"{path} was split before: training on" in notice for notice in notices)

    def test_whose_one_side_is_given_is_used_and_said(self, write: Any) -> None:
        notices: list[str] = []
        path = write([pair(1)], "data_train.jsonl")
        held_out = write([pair(2)], "data_eval.jsonl")
        data = prepared(Halves(NoConfig()), notices, path=path)
        assert (questions(data.train), questions(data.eval)) == (["q1"], ["q2"])
        assert any(f"holding out {held_out}" in notice for notice in notices)

    def test_that_is_older_than_the_file_is_none(self, write: Any) -> None:
        for number, name in enumerate(("data_train.jsonl", "data_eval.jsonl"), 1):
            os.utime(write([pair(number)], name), (1, 1))
        path = write([pair(3), pair(4)], "data.jsonl")
        assert questions(prepared(path=path).train) == ["q3", "q4"]
        os.utime(path, (1, 1))
        assert questions(prepared(path=path).train) == ["q1"]

    def test_of_an_array_is_found(self, write: Any) -> None:
        path = write(json.dumps([pair(1), pair(2), pair(3)]), "data.json")
        split_files([Path(path)], Random(RandomConfig(eval_rows=1)), split_names(Path(path)))
        data = prepared(path=path)
        assert (data.counts["trained"], data.counts["held_out"]) == (2, 1)

    def test_of_one_side_only_is_none(self, write: Any) -> None:
        write([pair(1)], "data_eval.jsonl")
        data = prepared(None, path=write([pair(2)], "data.jsonl"))
        assert data.eval == ()

    def test_gives_way_to_a_file_that_was_named(self, write: Any) -> None:
        write([pair(2)], "data_eval.jsonl")
        path, named = write([pair(1)], "data_train.jsonl"), write([pair(3)], "named.jsonl")
        assert questions(prepared(path=path, eval_path=named).eval) == ["q3"]


class TestTheDigest:
    def test_is_of_content(self, write: Any) -> None:
        path = write([pair(1), pair(2)])
        other = write([pair(1, id=3), pair(2)], "elsewhere.jsonl")
        assert prepared(path=path).digest == prepared(path=other).digest

    @pytest.mark.parametrize("rows", [[pair(2), pair(1)], [pair(1)], [pair(1), pair(2), pair(2)], [pair(1), pair(3)]])
    def test_tells_other_content_or_order(self, rows: list[Any], write: Any) -> None:
        assert prepared(path=write([pair(1), pair(2)])).digest != prepared(path=write(rows, "b.jsonl")).digest

    def test_tells_the_sides(self, write: Any) -> None:
        path = write([pair(1), pair(2)])
        assert prepared(path=path).digest != prepared(Halves(NoConfig()), path=path).digest


contents = st.lists(st.integers(0, 30), min_size=2, max_size=60).filter(lambda numbers: len(set(numbers)) > 1)


@pytest.mark.parametrize("splitter", [Hash(HashConfig()), Random(RandomConfig(eval_percentage=30)), Halves(NoConfig())])
@given(numbers=contents)
def test_rows_stand_on_one_side_and_none_is_lost(
    tmp_path_factory: pytest.TempPathFactory, splitter: Any, numbers: list[int]
) -> None:
    path = tmp_path_factory.mktemp("prepare") / "rows.jsonl"
    path.write_text("".join(json.dumps(pair(number)) + "\n" for number in numbers))
    data = prepared(splitter, path=str(path))
    train, held_out = questions(data.train), questions(data.eval)
    assert Counter(train) + Counter(held_out) == Counter(f"q{number}" for number in numbers)
    assert train
    assert held_out
    assert not set(train) & set(held_out)
    assert balanced(data.counts)
    assert data.counts["copies"] == len(numbers) - len(set(numbers))


def answering(answer: Any) -> DataSplitter[NoConfig]:
    class Broken(DataSplitter[NoConfig]):
        name = "broken"

        def held_out(self, rows: Iterable[Row]) -> Sequence[bool]:
            return list(answer(rows))

    return Broken(NoConfig())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda rows: [True for _ in rows], "held out 4 of 4 rows: one side is empty"),
        (lambda rows: [False for _ in rows], "held out 0 of 4 rows: one side is empty"),
        (lambda rows: [index == 0 for index, _ in enumerate(rows)][:3], "answered for 3 of 4 rows"),
        (lambda rows: [next(iter(rows)) is None, True], "did not look at all rows"),
    ],
)
def test_a_splitter_that_breaks_its_contract_is_named(answer: Any, reason: str) -> None:
    rows = [Row(index, bytes([index] * 16), {}) for index in range(4)]
    with pytest.raises(PluginError, match=rf"data splitter 'broken' {reason}.*\[LF-PLUGIN-020\]"):
        assign(rows, answering(answer))


def test_a_column_is_kept_for_a_curriculum(write: Any) -> None:
    notices: list[str] = []
    path = write([pair(1, level=3), pair(2, level=0.5)])
    data = prepare(DatasetConfig(path=path), None, notice=notices.append, difficulty="level")
    assert [example.difficulty for example in data.train] == [3.0, 0.5]
    assert not any("not used" in notice for notice in notices)


def test_numbers_of_a_table_are_numbers_though_they_are_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("instruction,output,level\none,1,3\ntwo,2,1e-1\nthree,3, -4.5\n")
    data = prepare(DatasetConfig(path=str(path)), None, notice=print, difficulty="level")
    assert [example.difficulty for example in data.train] == [3.0, 0.1, -4.5]


@pytest.mark.parametrize("level", ["hard", "", "nan", "1e999", None, True, [1]])
def test_a_column_that_is_no_number_is_no_curriculum(write: Any, level: Any) -> None:
    path = write([pair(1, level=3), pair(2, level=level), pair(3)])
    with pytest.raises(DataError) as caught:
        prepare(DatasetConfig(path=path), None, notice=print, difficulty="level")
    assert [(item.id, item.where) for item in caught.value.problems] == [
        ("LF-DATA-080", f"{path}:2"),
        ("LF-DATA-080", f"{path}:3"),
    ]
    assert "no column 'level'" in caught.value.problems[1].message
