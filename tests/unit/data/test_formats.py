"""The forms of rows: one internal form, and every row that does not fit is said."""

from __future__ import annotations

from typing import Any

import pytest

from llamafarm.api import Example, Message, RowRef
from llamafarm.data.formats import FORMATS, detect_format, to_example, unused_columns
from llamafarm.data.tokens import tokenize
from llamafarm.errors import DataError

REF = RowRef("rows.jsonl", 3)
USER, ASSISTANT = Message("user", "q"), Message("assistant", "a")
Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}

ROWS: dict[str, tuple[dict[str, Any], str, tuple[Message, ...]]] = {
    "messages": (
        {"messages": [Q, A]},
        "messages",
        (USER, ASSISTANT),
    ),
    "messages with a developer": (
        {
            "messages": [
                {"role": "developer", "content": "s"},
                Q,
                A,
            ]
        },
        "messages",
        (Message("system", "s"), USER, ASSISTANT),
    ),
    "messages with a tool": (
        {
            "messages": [
                Q,
                {"role": "tool", "content": "t"},
                A,
            ]
        },
        "messages",
        (USER, Message("tool", "t"), ASSISTANT),
    ),
    "messages in other names": (
        {"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        "messages",
        (USER, ASSISTANT),
    ),
    "messages with empty extras": (
        {
            "messages": [
                Q | {"name": None},
                A | {"tool_calls": []},
            ]
        },
        "messages",
        (USER, ASSISTANT),
    ),
    "a message left out": (
        {
            "messages": [
                Q,
                {"role": "assistant", "content": "x", "train": False},
                {"role": "assistant", "content": "a", "train": True},
            ]
        },
        "messages",
        (USER, Message("assistant", "x", train=False), Message("assistant", "a", train=True)),
    ),
    "a message of no weight": (
        {
            "messages": [
                Q,
                {"role": "assistant", "content": "x", "weight": 0},
                {"role": "assistant", "content": "a", "weight": 1},
            ]
        },
        "messages",
        (USER, Message("assistant", "x", train=False), Message("assistant", "a", train=True)),
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        "sharegpt",
        (USER, ASSISTANT),
    ),
    "sharegpt in plain names": (
        {"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]},
        "sharegpt",
        (USER, ASSISTANT),
    ),
    "sharegpt in roles": (
        {"conversations": [Q, A]},
        "sharegpt",
        (USER, ASSISTANT),
    ),
    "sharegpt with a system column": (
        {"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        "sharegpt",
        (Message("system", "s"), USER, ASSISTANT),
    ),
    "alpaca": ({"instruction": "q", "output": "a"}, "alpaca", (USER, ASSISTANT)),
    "alpaca with empty input": ({"instruction": "q", "input": "", "output": "a"}, "alpaca", (USER, ASSISTANT)),
    "alpaca with null input": ({"instruction": "q", "input": None, "output": "a"}, "alpaca", (USER, ASSISTANT)),
    "alpaca with input": (
        {"instruction": "q", "input": "i", "output": "a"},
        "alpaca",
        (Message("user", "q\n\ni"), ASSISTANT),
    ),
    "alpaca with its text": ({"instruction": "q", "output": "a", "text": "q a"}, "alpaca", (USER, ASSISTANT)),
    "alpaca with system and history": (
        {"instruction": "q", "output": "a", "system": "s", "history": [["q1", "a1"], ["q2", "a2"]]},
        "alpaca",
        (
            Message("system", "s"),
            Message("user", "q1"),
            Message("assistant", "a1"),
            Message("user", "q2"),
            Message("assistant", "a2"),
            USER,
            ASSISTANT,
        ),
    ),
    "prompt and completion": ({"prompt": "q", "completion": "a"}, "prompt-completion", (USER, ASSISTANT)),
    "question and answer": ({"question": "q", "answer": "a"}, "prompt-completion", (USER, ASSISTANT)),
    "query and response": ({"query": "q", "response": "a"}, "prompt-completion", (USER, ASSISTANT)),
    "prompt and completion with system": (
        {"system": "s", "prompt": "q", "completion": "a"},
        "prompt-completion",
        (Message("system", "s"), USER, ASSISTANT),
    ),
    "text": ({"text": "anything\n"}, "text", ()),
}


@pytest.mark.parametrize("name", ROWS)
def test_every_form_is_recognized_and_read(name: str) -> None:
    row, form, messages = ROWS[name]
    found, reason = detect_format(row)
    assert found == form
    assert reason.startswith("column")
    example = to_example(row, REF, form)
    assert example.ref == REF
    assert example.messages == messages
    assert (example.text is not None) == (form == "text")


def test_text_is_not_touched() -> None:
    odd = "  2024-01-02T10:00:00 123456789012345678901234567890 \u2028\ufeff\r\n"
    assert to_example({"text": odd}, REF, "text").text == odd
    assert to_example({"prompt": odd, "completion": odd}, REF, "prompt-completion").messages[0].content == odd


def test_the_text_column_can_have_another_name() -> None:
    assert detect_format({"content": "a"}, "content") == ("text", "column 'content'")
    assert to_example({"content": "a"}, REF, "text", "content").text == "a"


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "q", "output": "a"}, "### Instruction:\nq\n\n### Response:\n"),
        ({"instruction": "q", "input": "i", "output": "a"}, "### Instruction:\nq\n\n### Input:\ni\n\n### Response:\n"),
        ({"instruction": "q", "output": "a", "system": "s"}, None),
        ({"prompt": "q", "completion": "a"}, "q"),
        ({"prompt": "q", "completion": "a", "system": "s"}, "s\n\nq"),
        ({"messages": [Q, A]}, None),
    ],
)
def test_prompts_for_tokenizers_without_a_template(row: dict[str, Any], prompt: str | None) -> None:
    assert to_example(row, REF, detect_format(row)[0]).prompt == prompt


BAD: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "null messages": ("messages", {"messages": None}, "LF-DATA-014", "'messages' is null, expected a list"),
    "no messages": ("messages", {"messages": []}, "LF-DATA-013", "'messages' is empty"),
    "messages as text": ("messages", {"messages": "q"}, "LF-DATA-014", "'messages' is text, expected a list"),
    "message as text": (
        "messages",
        {"messages": ["q"]},
        "LF-DATA-014",
        "turn 1 of 'messages' is text, expected an object",
    ),
    "no role": (
        "messages",
        {"messages": [{"content": "q"}]},
        "LF-DATA-012",
        "'role' of turn 1 of 'messages' is missing",
    ),
    "no content": ("messages", {"messages": [{"role": "user"}]}, "LF-DATA-012", "'content' of turn 1"),
    "null content": ("messages", {"messages": [Q | {"content": None}]}, "LF-DATA-014", "is null, expected text"),
    "number as content": ("messages", {"messages": [Q | {"content": 7}]}, "LF-DATA-014", "is a number, expected text"),
    "blank content": ("messages", {"messages": [Q | {"content": " \n"}]}, "LF-DATA-013", "is empty"),
    "parts as content": (
        "messages",
        {"messages": [Q | {"content": [{"type": "text", "text": "q"}]}]},
        "LF-DATA-014",
        "is a list, expected text",
    ),
    "unknown role": ("messages", {"messages": [Q | {"role": "usr"}]}, "LF-DATA-015", "is by 'usr', expected"),
    "no answer": ("messages", {"messages": [Q]}, "LF-DATA-016", "no assistant turn to learn from"),
    "no answer to learn": ("messages", {"messages": [Q, A | {"train": False}]}, "LF-DATA-016", "no assistant turn"),
    "tool calls": (
        "messages",
        {"messages": [Q, A | {"tool_calls": [{"id": 1}]}]},
        "LF-DATA-012",
        "'name' of tool call 1 of turn 2",
    ),
    "train as text": ("messages", {"messages": [Q, A | {"train": "no"}]}, "LF-DATA-014", "'train' of turn 2"),
    "train of a user": ("messages", {"messages": [Q | {"train": True}, A]}, "LF-DATA-017", "only answers are learned"),
    "half a weight": ("messages", {"messages": [Q, A | {"weight": 0.5}]}, "LF-DATA-014", "is 0.5, expected"),
    "no output": ("alpaca", {"instruction": "q"}, "LF-DATA-012", "'output' is missing"),
    "null instruction": ("alpaca", {"instruction": None, "output": "a"}, "LF-DATA-014", "'instruction' is null"),
    "list as input": ("alpaca", {"instruction": "q", "input": [], "output": "a"}, "LF-DATA-014", "'input' is a list"),
    "history of text": (
        "alpaca",
        {"instruction": "q", "output": "a", "history": ["x"]},
        "LF-DATA-014",
        "item 1 of 'history'",
    ),
    "empty history": (
        "alpaca",
        {"instruction": "q", "output": "a", "history": [["x", ""]]},
        "LF-DATA-013",
        "item 1 of 'history'",
    ),
    "no completion": ("prompt-completion", {"prompt": "q"}, "LF-DATA-012", "'completion' is missing"),
    "empty prompt": ("prompt-completion", {"prompt": "", "completion": "a"}, "LF-DATA-013", "'prompt' is empty"),
    "true as prompt": (
        "prompt-completion",
        {"prompt": True, "completion": "a"},
        "LF-DATA-014",
        "'prompt' is a boolean",
    ),
    "object as text": ("text", {"text": {}}, "LF-DATA-014", "'text' is an object"),
    "no text": ("text", {"content": "a"}, "LF-DATA-012", "'text' is missing"),
    "another form": (
        "messages",
        {"instruction": "q", "output": "a"},
        "LF-DATA-011",
        "the row is alpaca (column 'instruction')",
    ),
    "another form of text": (
        "alpaca",
        {"text": "a"},
        "LF-DATA-011",
        "the row is text (column 'text'), where alpaca was",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_row_that_does_not_fit_is_said(name: str) -> None:
    form, row, id_, part = BAD[name]
    with pytest.raises(DataError) as error:
        to_example(row, REF, form)
    (problem,) = error.value.problems
    assert (problem.where, problem.id) == ("rows.jsonl:3", id_)
    assert part in problem.message


@pytest.mark.parametrize(
    ("row", "id_", "part"),
    [
        ({"data": [{"prompt": "a"}]}, "LF-DATA-018", "they stand under 'data'"),
        ({"prompt": "a", "chosen": "b"}, "LF-DATA-010", "'prompt', 'chosen'"),
        ({}, "LF-DATA-010", "columns: none"),
        ({"label": 1}, "LF-DATA-010", "columns: 'label'"),
    ],
)
def test_a_row_of_no_form_is_said(row: dict[str, Any], id_: str, part: str) -> None:
    with pytest.raises(DataError) as error:
        detect_format(row)
    (problem,) = error.value.problems
    assert problem.id == id_
    assert part in problem.message


def test_columns_that_are_not_read_are_known() -> None:
    row = {"id": 7, "note": None, "instruction": "q", "output": "a", "input": ""}
    assert unused_columns(row, "alpaca") == ["id"]
    assert unused_columns({"question": "q", "answer": "a", "output": "b"}, "prompt-completion") == ["output"]
    assert all(unused_columns({"x": 1}, form) == ["x"] for form in FORMATS)


EQUAL = {
    "messages": {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the as"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "the as"}]},
    "alpaca": {"instruction": "hello", "output": "the as"},
    "prompt-completion": {"prompt": "hello", "completion": "the as"},
}


@pytest.mark.parametrize("template", ["chatml", "llama2", "gemma", None])
def test_equal_content_gives_equal_ids_in_every_form(template: str | None, lab: Any) -> None:
    tokenizer = lab.byte_level(lab.marked(lab.families[template].template, "no-marks") if template else None)
    forms = [form for form in EQUAL if template or form != "prompt-completion"]  # without a template it is no chat
    examples = [to_example(EQUAL[form], REF, form) for form in forms]
    rows = tokenize(examples, tokenizer, stage="sft", max_seq_length=999, train_on_inputs=False).rows
    assert len(rows) == len(forms)
    assert all(row == rows[0] for row in rows)


def test_a_prompt_and_its_completion_follow_each_other_without_a_template(lab: Any) -> None:
    tokenizer = lab.byte_level()
    example: Example = to_example({"prompt": "hello", "completion": " the"}, REF, "prompt-completion")
    (row,) = tokenize([example], tokenizer, stage="sft", max_seq_length=99, train_on_inputs=False).rows
    assert tokenizer.decode(row.input_ids) == "hello the</s>"
