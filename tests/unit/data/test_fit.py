"""Rows that are too long: the prompt is cut first, an end is never made up, and everything is counted."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llamafarm.data.fit import IGNORED, TokenizedRow, truncate
from llamafarm.data.tokens import tokenize

lengths = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4)


def row_of(turns: list[tuple[int, int]], begin: int) -> tuple[TokenizedRow, int]:
    """Tokens numbered from 1, prompts and answers by turns; and where the last answer begins."""
    labels = [IGNORED] * begin
    for prompt, answer in turns:
        labels += [IGNORED] * prompt
        labels += range(len(labels) + 1, len(labels) + 1 + answer)
    return TokenizedRow(list(range(1, len(labels) + 1)), labels), len(labels) - turns[-1][1]


@given(turns=lengths, begin=st.integers(0, 1), limit=st.integers(3, 40), everything=st.booleans())
def test_what_is_kept(turns: list[tuple[int, int]], begin: int, limit: int, everything: bool) -> None:
    row, answer = row_of(turns, begin)
    if everything:
        row = TokenizedRow(row.input_ids, row.input_ids.copy())
    kept, cut = truncate(row, limit, begin=begin, answer=answer, everything=everything)
    ids = kept.input_ids
    assert len(ids) == len(kept.labels) == min(limit, len(row.input_ids))
    assert ids[:begin] == row.input_ids[:begin]
    assert ids[begin:] == list(range(ids[begin], ids[begin] + len(ids) - begin))
    assert cut == (ids[-1] != row.input_ids[-1])
    assert all(label in (IGNORED, token) for token, label in zip(ids, kept.labels, strict=True))
    last = turns[-1][1]
    if last + begin + max(limit // 8, 1) <= limit:
        assert not cut
        assert kept.labels[-last:] == row.labels[-last:]
    assert any(label != IGNORED for label in kept.labels[1:])


@given(turns=lengths, begin=st.integers(0, 1), limit=st.integers(2, 40))
def test_an_answer_without_its_beginning_is_not_learned(turns: list[tuple[int, int]], begin: int, limit: int) -> None:
    row, answer = row_of(turns, begin)
    kept, _ = truncate(row, limit, begin=begin, answer=answer, everything=False)
    for at, (token, label) in enumerate(zip(kept.input_ids, kept.labels, strict=True)):
        if label != IGNORED and at > begin and kept.labels[at - 1] == IGNORED:
            assert row.labels[token - 2] == IGNORED, "the token before it in the whole row was learned too"


def test_a_row_that_fits_is_left_alone() -> None:
    row, answer = row_of([(3, 4)], 1)
    assert truncate(row, 8, begin=1, answer=answer, everything=False) == (row, False)


def test_the_prompt_goes_first() -> None:
    row, answer = row_of([(9, 3)], 1)
    kept, cut = truncate(row, 8, begin=1, answer=answer, everything=False)
    assert (kept.input_ids, cut) == ([1, 7, 8, 9, 10, 11, 12, 13], False)
    assert kept.labels == [IGNORED] * 5 + [11, 12, 13]


def test_an_answer_that_does_not_fit_keeps_some_prompt_and_loses_its_end() -> None:
    row, answer = row_of([(9, 30)], 0)
    kept, cut = truncate(row, 16, begin=0, answer=answer, everything=False)
    assert (kept.input_ids, cut) == (list(range(8, 24)), True)
    assert kept.labels == [IGNORED, IGNORED, *range(10, 24)]


def test_earlier_turns_go_before_the_last_prompt() -> None:
    row, answer = row_of([(3, 5), (3, 4)], 0)
    kept, cut = truncate(row, 10, begin=0, answer=answer, everything=False)
    assert (kept.input_ids, cut) == (list(range(6, 16)), False)
    assert kept.labels == [IGNORED] * 6 + [12, 13, 14, 15]


def test_losses_are_counted(lab: Any) -> None:
    tokenizer = lab.byte_level(lab.marked(lab.families["llama3"].template, "no-marks"), "<|eot_id|>")
    examples = [
        lab.chat("x" * 50, "y" * 5),
        lab.chat("x", "y" * 80),
        lab.chat("x", "y"),
        lab.chat("x" * 40, "y" * 5, "x" * 9, "y"),
    ]

    def counted(limit: int, **options: Any) -> Any:
        settings = {"stage": "sft", "train_on_inputs": False, **options}
        return tokenize(examples, tokenizer, max_seq_length=limit, **settings)

    whole, cut = counted(1000), counted(45)
    assert whole.counts == {
        "examples": 4,
        "rows": 4,
        "learned_from": 4,
        "tokens": sum(len(row.input_ids) for row in whole.rows),
        "trained_tokens": 6 + 81 + 2 + 6 + 2,
        "longest": max(len(row.input_ids) for row in whole.rows),
    }
    assert max(len(row.input_ids) for row in cut.rows) == cut.counts["longest"] == 45
    assert cut.counts["truncated"] == 3
    assert cut.counts["answers_without_end"] == 1
    assert cut.counts["tokens"] + cut.counts["tokens_cut"] == whole.counts["tokens"]
    assert cut.counts["trained_tokens"] + cut.counts["trained_tokens_cut"] == whole.counts["trained_tokens"]
    bos = tokenizer.bos_token_id
    assert all(row.input_ids[0] == bos and row.input_ids.count(bos) == 1 for row in cut.rows)
    everything = counted(45, train_on_inputs=True)
    assert everything.counts["trained_tokens"] == everything.counts["tokens"]
    assert [len(row.input_ids) for row in everything.rows] == [45, 45, len(whole.rows[2].input_ids), 45]
