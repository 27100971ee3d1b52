"""Every row begins with the token that a method asks for: once, never learned, and within the longest length."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamafarm.api import BaseModelConfig, Example, MaskAuditConfig, Message, RowRef
from llamafarm.data.fit import IGNORED, TokenizedRow, pieces
from llamafarm.data.tokens import Tokenized, tokenize
from llamafarm.models._load import load_tokenizer

BOS = 0
SETTINGS: dict[str, Any] = {"stage": "sft", "max_seq_length": 999, "train_on_inputs": False}


@pytest.fixture
def tokenizer(tiny_model_dir: Any) -> Any:
    """Its template writes no BOS, as those of Phi-3 and ChatML."""
    tokenizer = load_tokenizer(BaseModelConfig(huggingface_id=str(tiny_model_dir("llama"))))
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token }}", "")
    return tokenizer


def chat(question: str, answer: str) -> Example:
    return Example(RowRef("x", 1), (Message("user", question), Message("assistant", answer)))


def text(content: str) -> Example:
    return Example(RowRef("x", 1), text=content)


def rows(examples: list[Example], tokenizer: Any, first: int | None = BOS, **settings: Any) -> Tokenized:
    return tokenize(
        examples, tokenizer, **SETTINGS | settings, first_token=first, mask_audit=MaskAuditConfig(max_unlabelled=1.0)
    )


@pytest.mark.parametrize("train_on_inputs", [False, True])
def test_it_is_put_before_the_row_and_not_learned(tokenizer: Any, train_on_inputs: bool) -> None:
    plain = rows([chat("Lock it.", "Locked.")], tokenizer, None, train_on_inputs=train_on_inputs).rows[0]
    made = rows([chat("Lock it.", "Locked.")], tokenizer, train_on_inputs=train_on_inputs)
    assert made.rows[0].input_ids == [BOS, *plain.input_ids]
    assert made.rows[0].labels == [IGNORED, *plain.labels]
    assert made.counts["first_token_added"] == 1
    assert train_on_inputs or "every answer is trained" in made.audit


def test_one_that_is_there_is_not_doubled(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    plain = rows([chat("Lock it.", "Locked.")], tokenizer, None)
    made = rows([chat("Lock it.", "Locked.")], tokenizer)
    assert made.rows == plain.rows
    assert "first_token_added" not in made.counts


def test_another_token_than_the_tokenizers_own_stands_before_it(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    (row,) = rows([chat("Lock it.", "Locked.")], tokenizer, first=7).rows
    assert row.input_ids[:2] == [7, BOS]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(words=st.integers(1, 30), said=st.integers(1, 4), limit=st.integers(14, 60))
def test_a_row_that_is_too_long_keeps_its_beginning_and_its_end(
    tokenizer: Any, words: int, said: int, limit: int
) -> None:
    (row,) = rows([chat("light " * words, "on " * said)], tokenizer, max_seq_length=limit).rows
    assert len(row.input_ids) <= limit
    assert row.input_ids[0] == BOS
    assert row.labels[0] == IGNORED
    assert row.labels[-1] == row.input_ids[-1] == tokenizer.eos_token_id, "the end is still learned"


def test_a_row_of_exactly_the_longest_length_still_ends(tokenizer: Any) -> None:
    example = chat("Turn on the light in the kitchen.", "On.")
    size = len(rows([example], tokenizer, None).rows[0].input_ids)
    (row,) = rows([example], tokenizer, max_seq_length=size).rows
    assert len(row.input_ids) == size
    assert row.labels[-1] == tokenizer.eos_token_id


@given(size=st.integers(2, 80), limit=st.integers(3, 20), first=st.sampled_from([None, 99]))
def test_pieces_of_a_text_each_begin_with_it_and_every_token_is_learned_once(
    size: int, limit: int, first: int | None
) -> None:
    ids = list(range(100, 100 + size))
    start = [] if first is None else [first]
    whole = TokenizedRow(start + ids, [IGNORED] * len(start) + ids)
    cut = list(pieces(whole, limit, first))
    assert all(len(row.input_ids) <= limit for row in cut)
    assert all(row.input_ids[: len(start)] == start for row in cut)
    learned = [label for row in cut for label in row.labels if label != IGNORED]
    assert learned == ids
    for row in cut[1:]:
        for at, label in enumerate(row.labels):
            if label != IGNORED:
                assert row.input_ids[at - 1] == label - 1, "predicted from the token before it"


def test_raw_text_in_pieces(tokenizer: Any) -> None:
    made = rows([text("Lock the front door and set the alarm. " * 5)], tokenizer, stage="pt", max_seq_length=12)
    assert len(made.rows) > 3
    assert all(row.input_ids[0] == BOS and row.input_ids.count(BOS) == 1 for row in made.rows)
    assert all(row.labels[0] == IGNORED for row in made.rows[1:])
