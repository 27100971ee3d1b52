"""Several sources, tasks, and rows of preference."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from llamafarm.api import DatasetConfig, Example, Message, PreparedData, RowRef
from llamafarm.data.formats import detect_format, to_example
from llamafarm.data.prepare import prepare
from llamafarm.data.tokens import tokenize
from llamafarm.errors import DataError

REF = RowRef("rows.jsonl", 3)
Q, GOOD, BAD = Message("user", "q"), Message("assistant", "good"), Message("assistant", "bad")


def prepared(notices: list[str] | None = None, **dataset: Any) -> PreparedData:
    said = [] if notices is None else notices
    return prepare(DatasetConfig(**dataset), None, notice=said.append)


def rows(letter: str, count: int) -> list[dict[str, Any]]:
    return [{"text": f"{letter} {number}"} for number in range(count)]


def shares(data: PreparedData) -> Counter[str]:
    return Counter(str(example.text)[0] for example in data.train)


def test_all_rows_of_all_sources_are_mixed(write: Any) -> None:
    sources = [{"path": write(rows("a", 30), "a.jsonl")}, {"path": write(b"text\n" + b"b\n" * 20, "b.csv")}]
    data = prepared(sources=sources)
    assert shares(data) == {"a": 30, "b": 20}
    assert data.counts == {"read": 50, "trained": 50, "held_out": 0, "copies": 19}
    assert len({str(example.text)[0] for example in data.train[:12]}) == 2
    assert data.digest == prepared(sources=sources).digest
    assert data.digest != prepared(sources=sources, sample_seed=1).digest


def test_weights_choose_how_many_rows_of_each(write: Any) -> None:
    notices: list[str] = []
    paths = {letter: write(rows(letter, count), f"{letter}.jsonl") for letter, count in (("a", 300), ("b", 40))}
    data = prepared(notices, sources=[{"path": paths["a"], "weight": 3}, {"path": paths["b"], "weight": 1}])
    assert shares(data) == {"a": 120, "b": 40}
    assert data.counts["read"] == 340 == data.counts["trained"] + data.counts["dropped_not_sampled"]
    assert f"{paths['a']}: 120 of 300 rows (weight 3)" in notices
    assert f"{paths['b']}: 40 of 40 rows (weight 1)" in notices
    few = prepared(sources=[{"path": f"{paths['a']}#50"}, {"path": paths["b"]}], max_samples=60)
    assert few.counts == {"read": 340, "trained": 60, "held_out": 0, "dropped_not_sampled": 280, "copies": 0}


def test_weights_that_cannot_be_kept_are_said(write: Any) -> None:
    paths = [write(rows(letter, 3), f"{letter}.jsonl") for letter in "ab"]
    for weights in ([1, None], [1, 1000]):
        with pytest.raises(DataError, match="LF-DATA-050"):
            prepared(sources=[{"path": path, "weight": weight} for path, weight in zip(paths, weights, strict=True)])


def test_sources_have_forms_columns_and_tasks_of_their_own(write: Any) -> None:
    sources = [
        {"path": write([{"q": "x", "a": "y"}], "a.jsonl"), "columns": {"prompt": "q", "completion": "a"}, "task": "QA"},
        {"path": write(b"content\nhello\n", "b.csv"), "text_field": "content", "task": "NEWS"},
        {"path": write([{"instruction": "do", "input": "it", "output": "done"}], "c.jsonl"), "task": "DO"},
    ]
    found = {example.task: example for example in prepared(sources=sources).train}
    assert found["QA"].messages == (Message("user", "[TASK:QA] x"), Message("assistant", "y"))
    assert found["QA"].prompt == "[TASK:QA] x"
    assert found["NEWS"].text == "[TASK:NEWS] hello"
    assert found["DO"].messages[0] == Message("user", "[TASK:DO] do\n\nit")
    assert found["DO"].prompt == "### Instruction:\n[TASK:DO] do\n\n### Input:\nit\n\n### Response:\n"


def test_bad_rows_of_all_sources_are_said_together(write: Any) -> None:
    paths = [write([{"prompt": "q", "completion": ""}], f"{letter}.jsonl") for letter in "ab"]
    with pytest.raises(DataError) as error:
        prepared(sources=[{"path": path} for path in paths])
    assert [problem.where for problem in error.value.problems] == [f"{path}:1" for path in paths]


PREFERENCES: dict[str, tuple[dict[str, Any], Example]] = {
    "texts": (
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        Example(REF, (Q,), chosen=(GOOD,), rejected=(BAD,)),
    ),
    "question": (
        {"system": "s", "question": "q", "chosen": "good", "rejected": "bad"},
        Example(REF, (Message("system", "s"), Q), chosen=(GOOD,), rejected=(BAD,)),
    ),
    "prompt inside": (
        {
            "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
            "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}],
        },
        Example(REF, (Q,), chosen=(GOOD,), rejected=(BAD,)),
    ),
    "unpaired": (
        {"prompt": "q", "completion": "bad", "label": False},
        Example(REF, (Q,), chosen=(BAD,), label=False),
    ),
    "unpaired in csv": (
        {"prompt": "q", "completion": "good", "label": "True"},
        Example(REF, (Q,), chosen=(GOOD,), label=True),
    ),
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences_are_recognized(name: str) -> None:
    row, example = PREFERENCES[name]
    form, reason = detect_format(row)
    assert form == ("unpaired" if "unpaired" in name else "preference")
    assert "column" in reason
    assert to_example(row, REF, form) == example


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences_are_not_trained_as_answers(name: str, write: Any, chat_tokenizer: Any) -> None:
    path = write([PREFERENCES[name][0]])
    data = prepared(path=path)
    with pytest.raises(DataError, match=r"1 of 1 rows are preferences, which stage sft cannot learn from.*LF-DATA-051"):
        tokenize(data.train, chat_tokenizer(None, "no-marks"), stage="sft", max_seq_length=99, train_on_inputs=False)


@pytest.mark.parametrize(
    ("form", "row", "id_", "part"),
    [
        ("preference", {"prompt": "q", "chosen": "a", "rejected": "a"}, "LF-DATA-048", "are the same"),
        ("preference", {"chosen": "a", "rejected": "b"}, "LF-DATA-012", "the prompt is missing"),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": ""}, "LF-DATA-013", "'rejected' is empty"),
        ("preference", {"prompt": "q", "chosen": "a"}, "LF-DATA-012", "'rejected' is missing"),
        (
            "preference",
            {"prompt": "q", "chosen": "a", "rejected": [{"role": "user", "content": "x"}]},
            "LF-DATA-016",
            "no assistant turn in 'rejected'",
        ),
        ("unpaired", {"prompt": "q", "completion": "a"}, "LF-DATA-012", "'label' is missing"),
        ("unpaired", {"prompt": "q", "completion": "a", "label": "yes"}, "LF-DATA-014", "'label' is 'yes'"),
    ],
)
def test_what_is_wrong_with_preferences_is_said(form: str, row: dict[str, Any], id_: str, part: str) -> None:
    with pytest.raises(DataError) as error:
        to_example(row, REF, form)
    (problem,) = error.value.problems
    assert (problem.id, problem.where) == (id_, str(REF))
    assert part in problem.message
