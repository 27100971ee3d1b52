"""The mask audit: silent on what we make of any conversation, and loud on each kind of fault."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.api import MaskAuditConfig, Message
from llamafarm.data.audit import Auditor
from llamafarm.data.tokens import IGNORED, tokenize
from llamafarm.errors import DataError

LONG = 100_000
SETTINGS = {"stage": "sft", "max_seq_length": LONG, "train_on_inputs": False}
content = st.one_of(
    st.text(max_size=12),
    st.lists(
        st.sampled_from(["hello", "\n", " ", "assistant", "user\n", "<|im_end|>", "</s>", "[/INST]", "é", "😀"]),
        max_size=5,
    ).map("".join),
).filter(str.strip)
turns = st.lists(st.tuples(content, content), min_size=1, max_size=3).map(lambda pairs: [*sum(pairs, ())])

word = st.text("helo as", min_size=1, max_size=9).filter(str.strip)
words = st.lists(st.tuples(word, word), min_size=1, max_size=3).map(lambda pairs: [*sum(pairs, ())])


def one(tokenizer: Any, example: Any) -> Any:
    seen: list[Any] = []
    tokenize([example], tokenizer, **SETTINGS, watch=seen.append)
    return seen[0]


def audited(tokenizer: Any, fitted: Any, labels: list[int] | None = None, **options: Any) -> Auditor:
    auditor = Auditor(tokenizer, MaskAuditConfig(**options))
    auditor.look(fitted.example, fitted.encoded.ids, labels or fitted.row.labels)
    return auditor


def refused(auditor: Auditor) -> list[Any]:
    with pytest.raises(DataError) as raised:
        auditor.check(1, 0)
    return list(raised.value.problems)


@settings(max_examples=20, deadline=None)
@given(texts=turns)
def test_nothing_is_said_of_what_we_make(tokenizer: Any, family: Any, lab: Any, texts: list[str]) -> None:
    auditor = audited(tokenizer, one(tokenizer, lab.chat(*texts)))
    assert (auditor.found.unstopped, auditor.found.foreign) == (0, 0)
    auditor.check(1, 0)


@settings(max_examples=8, deadline=None)
@given(texts=words, data=st.data())
def test_a_planted_fault_is_caught(tokenizer: Any, family: Any, lab: Any, texts: list[str], data: Any) -> None:
    fitted = one(tokenizer, lab.chat(*texts))
    stop, start = fitted.encoded.learned[-1][1] - 1, fitted.encoded.learned[-1][0]
    without = [*fitted.row.labels]
    without[stop] = IGNORED
    assert refused(audited(tokenizer, fitted, without))[0].id == "LF-DATA-090"
    header = [*fitted.row.labels]
    before = data.draw(st.integers(max(start - 3, 1), start - 1))
    header[before:start] = fitted.encoded.ids[before:start]
    assert [problem.id for problem in refused(audited(tokenizer, fitted, header))] == ["LF-DATA-091"]
    question = [*fitted.row.labels]
    question[0] = fitted.encoded.ids[0]
    assert refused(audited(tokenizer, fitted, question))[0].id == "LF-DATA-091"


def test_a_fault_names_row_turn_and_token(lab: Any) -> None:
    tokenizer = lab.byte_level(lab.marked(lab.families["chatml"].template, "no-marks"), "<|im_end|>")
    fitted = one(tokenizer, lab.chat("on", "hello", "on", "the"))
    end = fitted.encoded.learned[0][1]
    labels = [*fitted.row.labels]
    labels[end - 1] = IGNORED
    (problem,) = refused(audited(tokenizer, fitted, labels))
    assert (problem.id, problem.where) == ("LF-DATA-090", "rows.jsonl:1")
    assert "stop token '<|im_end|>' of turn 2" in problem.message
    labels = [*fitted.row.labels]
    labels[end : end + 2] = fitted.encoded.ids[end : end + 2]
    (problem,) = refused(audited(tokenizer, fitted, labels))
    assert (problem.id, problem.where) == ("LF-DATA-091", "rows.jsonl:1")
    assert "'<|im_start|>' after the end of turn 2" in problem.message
    labels = [IGNORED] * end + fitted.row.labels[end:]
    (problem,) = refused(audited(tokenizer, fitted, labels))
    assert (problem.id, problem.message) == ("LF-DATA-090", "turn 2, an answer, is not trained")


def test_marks_around_a_header_are_refused(lab: Any) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ '<|im_start|>assistant\\n' + m['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ '<|im_start|>user\\n' + m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    tokenizer = lab.byte_level(template, "<|im_end|>")
    rows = [lab.chat("on", "hello"), lab.chat("as", "the")]
    with pytest.raises(DataError) as raised:
        tokenize(rows, tokenizer, **SETTINGS, mask_audit=MaskAuditConfig())
    assert [problem.id for problem in raised.value.problems] == ["LF-DATA-091"] * 2
    assert "'<|im_start|>' before turn 2, in its prompt" in raised.value.problems[0].message
    said = tokenize(rows, tokenizer, **SETTINGS, mask_audit=MaskAuditConfig(prompt_tokens=False)).audit
    assert said == "mask audit: 2 answers in 2 rows: 2 stretches trained that are no answer"
    assert tokenize(rows, tokenizer, **SETTINGS, mask_audit=MaskAuditConfig(enabled=False)).audit == ""


def test_too_many_rows_without_a_label_are_refused(lab: Any) -> None:
    tokenizer = lab.byte_level(lab.marked(lab.families["zephyr"].template, "no-marks"))
    rows = [lab.chat("on", "hello")] * 9 + [lab.chat("on", "hello", "a" * 90 + "b")]

    def look(share: float) -> Auditor:
        auditor = Auditor(tokenizer, MaskAuditConfig(max_unlabelled=share))
        auditor.without_label(rows[-1])
        auditor.check(len(rows), 1)
        return auditor

    look(0.1)
    with pytest.raises(DataError, match=r"1 of 10 rows have no token to learn \(rows.jsonl:1\)") as raised:
        look(0.09)
    assert raised.value.problems[0].id == "LF-DATA-092"


def test_an_answer_that_is_left_out_is_not_asked_for(lab: Any) -> None:
    tokenizer = lab.byte_level(lab.marked(lab.families["zephyr"].template, "no-marks"))
    chat = lab.chat("a", "b", "c", "d")
    messages = (chat.messages[0], Message("assistant", "b", train=False), *chat.messages[2:])
    auditor = audited(tokenizer, one(tokenizer, type(chat)(chat.ref, messages)))
    auditor.check(1, 0)
    assert auditor.found.answers == 1


def test_a_template_without_stop_tokens_and_none_at_all_pass(lab: Any) -> None:
    letters = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '###\\n' }}{% endfor %}"
    for template in (letters, None):
        tokenizer = lab.byte_level(template)
        for chat in (lab.chat("a", "b", "c", "d"), lab.chat("a", "b", "c")):
            audited(tokenizer, one(tokenizer, chat)).check(1, 0)


def test_the_result_is_one_sentence(lab: Any) -> None:
    tokenizer = lab.byte_level(lab.marked(lab.families["phi3"].template, "no-marks"), "<|endoftext|>")
    said = tokenize([lab.chat("a", "b", "c", "d")], tokenizer, **SETTINGS, mask_audit=MaskAuditConfig()).audit
    assert said == (
        "mask audit: 2 answers in 1 rows: "
        "every answer is trained with its end ('<|end|>' or '<|endoftext|>'), and nothing else is"
    )
