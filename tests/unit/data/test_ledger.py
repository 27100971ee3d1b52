"""What becomes of rows that are too long, and the accounts of every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamafarm.api import Example, Message, RowRef
from llamafarm.data.fit import IGNORED
from llamafarm.data.ledger import check_losses, losses_by_source, row_ledger, said_of_losses
from llamafarm.data.tokens import Loss, OverLong, Tokenized, tokenize
from llamafarm.errors import DataError

POLICIES: tuple[OverLong, ...] = ("truncate", "drop", "split")


def conversation(line: int, *texts: str) -> Example:
    turns = [Message("user" if number % 2 == 0 else "assistant", text) for number, text in enumerate(texts)]
    return Example(RowRef("rows.jsonl", line), tuple(turns))


EXAMPLES = [
    conversation(1, "x" * 60, "y" * 5),  # its prompt is too long
    conversation(2, "x", "y" * 90),  # its answer is
    conversation(3, "x", "y"),
    conversation(4, "x" * 3, "y" * 30, "x" * 9, "y" * 4),  # both turns together are
]


@pytest.fixture(scope="module")
def tokenizer(lab: Any) -> Any:
    return lab.byte_level(lab.marked(lab.families["llama3"].template, "no-marks"), "<|eot_id|>")


def fitted(tokenizer: Any, policy: OverLong, limit: int = 40, examples: Sequence[Example] = EXAMPLES) -> Tokenized:
    options: dict[str, Any] = {"stage": "sft", "train_on_inputs": False}
    return tokenize(examples, tokenizer, max_seq_length=limit, over_long=policy, **options)


def test_truncation_cuts_prompts_first_and_counts_the_rest(tokenizer: Any) -> None:
    counts = fitted(tokenizer, "truncate").counts
    assert counts["truncated"] == 3
    assert counts["learned_from"] == 4
    assert counts["trained_tokens"] + counts["trained_tokens_cut"] == 6 + 91 + 2 + 31 + 5
    # the ends of the long answer and of an earlier turn that had to go as a whole
    assert (counts["end_tokens_cut"], counts["answers_without_end"]) == (2, 1)


def test_rows_can_be_dropped(tokenizer: Any) -> None:
    tokenized = fitted(tokenizer, "drop")
    assert [row.example for row in tokenized.rows] == [2]
    assert tokenized.counts["dropped_too_long"] == 3
    assert tokenized.counts["trained_tokens_cut"] == 6 + 91 + 31 + 5
    assert tokenized.counts["end_tokens_cut"] == 4
    assert "answers_without_end" not in tokenized.counts


def test_rows_can_be_split_and_nothing_is_lost(tokenizer: Any) -> None:
    tokenized = fitted(tokenizer, "split")
    assert max(len(row.input_ids) for row in tokenized.rows) <= 40
    assert tokenized.counts["trained_tokens"] == 6 + 91 + 2 + 31 + 5
    assert not tokenized.losses
    learned = [label for row in tokenized.rows if row.example == 1 for label in row.labels if label != IGNORED]
    whole = fitted(tokenizer, "truncate", 1000).rows[1]
    assert learned == [label for label in whole.labels if label != IGNORED]


def test_rows_can_be_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError) as caught:
        fitted(tokenizer, "error")
    assert [(item.id, item.where) for item in caught.value.problems] == [
        ("LF-DATA-081", f"rows.jsonl:{line}") for line in (1, 2, 4)
    ]


def test_losing_an_end_token_is_refused_and_the_worst_rows_are_named(tokenizer: Any) -> None:
    tokenized = fitted(tokenizer, "truncate")
    for allowed in (0.0, 0.01, 0.99):
        with pytest.raises(DataError) as caught:
            check_losses(tokenized, EXAMPLES, allowed)
        problems = caught.value.problems
        assert {item.id for item in problems} == {"LF-DATA-082"}
        assert "the end of 1 answers do not fit" in problems[0].message
        assert [item.where for item in problems[1:]] == ["rows.jsonl:2", "rows.jsonl:4"]
    check_losses(tokenized, EXAMPLES, 1.0)


def test_losing_tokens_is_refused_above_the_share_alone(tokenizer: Any) -> None:
    examples = [EXAMPLES[0], EXAMPLES[2], EXAMPLES[3]]
    tokenized = fitted(tokenizer, "truncate", examples=examples)
    lost = tokenized.counts["trained_tokens_cut"] / (6 + 2 + 31 + 5)
    assert 0 < lost < 1
    check_losses(tokenized, examples, lost + 0.001)
    with pytest.raises(DataError, match=r"rows\.jsonl:4: loses 31 trained tokens \[LF-DATA-082\]"):
        check_losses(tokenized, examples, lost - 0.001)


def test_a_prompt_that_is_cut_costs_nothing(tokenizer: Any) -> None:
    check_losses(fitted(tokenizer, "truncate", examples=EXAMPLES[:1]), EXAMPLES[:1], 0.0)


texts = st.text("ab", min_size=1, max_size=30)
conversations = st.lists(st.lists(texts, min_size=2, max_size=4), min_size=1, max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(conversations, st.sampled_from(POLICIES), st.integers(2, 60))
def test_every_row_and_every_trained_token_is_accounted_for(
    tokenizer: Any, chats: list[list[str]], policy: OverLong, limit: int
) -> None:
    examples = [conversation(line, *chat[: len(chat) // 2 * 2]) for line, chat in enumerate(chats, 1)]
    total = fitted(tokenizer, "truncate", 10_000, examples).counts["trained_tokens"]
    try:
        tokenized = fitted(tokenizer, policy, limit, examples)
    except DataError:  # no row is left, which is refused
        return
    counts = tokenized.counts
    prepared = {"read": len(examples) + 3, "trained": len(examples), "held_out": 0, "dropped_also_held_out": 3}
    ledger = row_ledger(prepared, counts, {})
    assert ledger["read"] == sum(count for name, count in ledger.items() if name != "read")
    assert counts["trained_tokens"] + counts.get("trained_tokens_cut", 0) <= total
    if not counts.get("dropped_without_answer"):
        assert counts["trained_tokens"] + counts.get("trained_tokens_cut", 0) == total


def test_the_ledger_adds_up_both_sides() -> None:
    prepared = {"read": 12, "trained": 7, "held_out": 4, "dropped_also_held_out": 1, "copies": 2}
    train = {"examples": 7, "learned_from": 4, "dropped_too_long": 2, "dropped_without_answer": 1}
    held_out = {"examples": 4, "learned_from": 3, "dropped_too_long": 1}
    assert row_ledger(prepared, train, held_out) == {
        "read": 12,
        "trained": 4,
        "held_out": 3,
        "dropped_also_held_out": 1,
        "copies": 2,
        "dropped_too_long": 3,
        "dropped_without_answer": 1,
    }


def test_a_row_that_vanished_is_a_defect_of_ours() -> None:
    train = {"examples": 7, "learned_from": 6}
    with pytest.raises(AssertionError, match="row ledger: 7 rows were read, 6 are accounted for"):
        row_ledger({"read": 7, "trained": 7, "held_out": 0}, train, {})
    with pytest.raises(AssertionError, match="row ledger: trained 8"):
        row_ledger({"read": 8, "trained": 8, "held_out": 0}, train, {})


def test_losses_are_told_by_file(tokenizer: Any) -> None:
    """In the order of the rows; together they are what is counted of all."""
    examples = [replace(example, ref=RowRef(f"{at % 2}.jsonl", at)) for at, example in enumerate(EXAMPLES)]
    for policy in ("truncate", "drop"):
        tokenized = fitted(tokenizer, policy, examples=examples)
        found = losses_by_source(tokenized, examples)
        assert set(found) == {examples[index].ref.file for index in tokenized.losses}
        assert sum(lost["trained_tokens"] for lost in found.values()) == tokenized.counts["trained_tokens_cut"] > 0
        assert sum(lost["end_tokens"] for lost in found.values()) == tokenized.counts["end_tokens_cut"] > 0
        assert sum(lost["rows"] for lost in found.values()) == len(tokenized.losses)
        sentences = said_of_losses(found, policy)
        assert len(sentences) == len(found)
        assert all(f".jsonl: over_long: {policy} costs " in sentence for sentence in sentences)
    many = {f"{at}": {"rows": 1, "trained_tokens": at, "end_tokens": 0} for at in range(8)}
    assert [sentence.partition(":")[0] for sentence in said_of_losses(many, "drop")[:2]] == ["7", "6"]
    assert said_of_losses(many, "drop")[5:] == ["and 3 more files lose some"]
    assert len(said_of_losses({name: many[name] for name in "34567"}, "drop")) == 5, "and none more"


def test_of_rows_that_lose_tokens_alone_the_worst_are_named_first() -> None:
    examples = [conversation(line, "x", "y") for line in range(1, 9)]
    losses = {at: Loss(trained_tokens=lost, ends=0, open_end=False) for at, lost in enumerate([1, 5, 3, 8, 2, 7, 4, 6])}
    tokenized = Tokenized([], {"trained_tokens": 10, "trained_tokens_cut": 36}, losses)
    with pytest.raises(DataError) as caught:
        check_losses(tokenized, examples, 0.5)
    assert "36 of 46 trained tokens (78.3%) and the end of 0 answers do not fit" in caught.value.problems[0].message
    assert [item.where for item in caught.value.problems[1:]] == [f"rows.jsonl:{line}" for line in (4, 6, 8, 2, 7)]
