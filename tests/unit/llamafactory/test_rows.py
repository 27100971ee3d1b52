"""Rows on their way to LLaMA-Factory."""

from __future__ import annotations

import json

import pytest

from llamafarm.api import Example, Message, RowRef
from llamafarm.errors import DiskError, StrategyError
from llamafarm_tuners.llamafactory.rows import Form, form_of, write_rows

USER, YES, NO = Message("user", "On?"), Message("assistant", "Yes."), Message("assistant", "No.")
SYSTEM = Message("system", "Be brief.")


def example(*messages, **fields):
    return Example(RowRef("rows.jsonl", 7), messages, **fields)


def written(folder, examples, stage):
    write_rows(folder, examples, examples[:1], stage)
    info = json.loads((folder / "dataset_info.json").read_text())
    assert set(info) == {"llamafarm_train", "llamafarm_eval"}
    lines = (folder / info["llamafarm_train"]["file_name"]).read_text(encoding="utf-8").splitlines()
    return info["llamafarm_train"], [json.loads(line) for line in lines]


def test_conversations(tmp_path):
    info, rows = written(
        tmp_path, [example(SYSTEM, USER, YES), example(USER, Message("assistant", "ż\n\u2028"))], "sft"
    )
    assert info["formatting"] == "sharegpt"
    assert info["tags"]["user_tag"] == "user"
    roles = [[turn["role"] for turn in row["messages"]] for row in rows]
    assert roles == [["system", "user", "assistant"], ["user", "assistant"]]
    assert rows[1]["messages"][1]["content"] == "ż\n\u2028"


def test_pairs(tmp_path):
    info, rows = written(tmp_path, [example(USER, chosen=(YES,), rejected=(NO,))], "dpo")
    assert info["ranking"] is True
    assert rows[0]["rejected"] == {"role": "assistant", "content": "No."}


def test_judged_answers(tmp_path):
    info, rows = written(tmp_path, [example(USER, chosen=(YES,), label=False)], "kto")
    assert info["columns"]["kto_tag"] == "label"
    assert (len(rows[0]["messages"]), rows[0]["label"]) == (2, False)


def test_raw_text(tmp_path):
    info, rows = written(tmp_path, [example(text="A lamp.")], "pt")
    assert info == {"file_name": "llamafarm_train.jsonl", "columns": {"prompt": "text"}}
    assert rows == [{"text": "A lamp."}]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="LF-DISK-010"):
        write_rows(tmp_path / "file" / "data", [example(USER, YES)], (), "sft")


def test_one_way_of_learning_a_conversation():
    unlearned = Message("assistant", "Hm.", train=False)
    last = example(USER, unlearned, USER, YES)
    assert form_of([example(USER, YES)], "sft") == Form()
    assert form_of([example(USER, YES), last], "sft") == Form(mask_history=True)
    with pytest.raises(StrategyError, match="LLaMA-Factory knows one way"):
        form_of([last, example(USER, YES, USER, YES)], "sft")
    with pytest.raises(StrategyError, match="all answers of a conversation, or the last alone"):
        form_of([example(USER, YES, USER, unlearned)], "sft")


@pytest.mark.parametrize(
    ("row", "stage", "reason"),
    [
        (example(text="A lamp."), "sft", "raw text.*use stage: pt"),
        (example(USER, YES), "pt", "stage pt learns raw text"),
        (example(USER, YES), "dpo", "a conversation, which stage dpo"),
        (example(USER, chosen=(YES,), rejected=(NO,)), "sft", "a preference, which stage sft"),
        (example(USER, chosen=(YES, USER, YES), rejected=(NO,)), "dpo", "two single answers"),
        (example(USER, chosen=(YES,), rejected=(NO,)), "kto", "one answer and its label"),
        (example(USER, YES, tools=({"name": "f"},)), "sft", "tools.*type: pytorch"),
        (example(YES, USER), "sft", "take turns"),
        (example(USER, USER, YES), "sft", "take turns"),
        (example(SYSTEM, SYSTEM, USER, YES), "sft", "take turns"),
        (example(USER, YES, chosen=(YES,), rejected=(NO,)), "rm", "take turns"),
    ],
)
def test_rows_that_it_would_drop_or_change_are_refused(row, stage, reason):
    with pytest.raises(StrategyError, match=f"rows.jsonl:7: .*{reason}.*LF-STRATEGY-085"):
        form_of([row], stage)


def test_many_such_rows_are_counted():
    with pytest.raises(StrategyError, match="and 15 more rows") as caught:
        form_of([example(YES, USER)] * 20, "sft")
    assert len(caught.value.problems) == 6
