"""Chat templates that are unlike the usual ones, and tokenizers without one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from tokenizers import AddedToken, normalizers

from llamafarm.api import Example, Message, RowRef
from llamafarm.data.plain import plain_prompt
from llamafarm.data.tokens import IGNORED, tokenize
from llamafarm.errors import DataError, ModelError


def rows(tokenizer: Any, *examples: Example, **options: Any) -> list[Any]:
    settings = {"stage": "sft", "max_seq_length": 4096, "train_on_inputs": False, **options}
    return list(tokenize(examples, tokenizer, **settings).rows)


def text(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def learned(tokenizer: Any, row: Any) -> str:
    return text(tokenizer, [label for label in row.labels if label != IGNORED])


def example(*messages: Message, **fields: Any) -> Example:
    return Example(RowRef("rows.jsonl", 7), messages, **fields)


@pytest.mark.parametrize("marks", ["no-marks", "marks", "marks-without-end"])
@pytest.mark.parametrize("answer", ["the", "think", "<", "<think>", "/think>\n\n", "\n\nthe"])
def test_what_a_template_adds_to_an_answer_is_learned_with_it(answer: str, marks: str, lab: Any) -> None:
    tokenizer = lab.byte_level(lab.marked(lab.thinking, marks), "<|im_end|>")
    tokenizer.add_tokens(["<think>", "</think>"])
    (row,) = rows(tokenizer, lab.chat("hello", answer, "hello", answer))
    assert learned(tokenizer, row) == f"{answer}<|im_end|><think>\n\n</think>\n\n{answer}<|im_end|>"


def test_a_header_that_is_prompted_otherwise_is_not_learned(lab: Any) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant speaks\\n' }}{% endif %}"
    )
    tokenizer = lab.byte_level(template, "<|im_end|>")
    (row,) = rows(tokenizer, lab.chat("hello", "assistant", "hello", "the"))
    assert learned(tokenizer, row) == "assistant<|im_end|>the<|im_end|>"


def test_an_answer_may_come_first(lab: Any) -> None:
    tokenizer = lab.byte_level(lab.marked(lab.families["chatml"].template, "no-marks"), "<|im_end|>")
    turns = [Message("assistant", "assistant"), Message("user", "on"), Message("assistant", "the")]
    (row,) = rows(tokenizer, example(*turns))
    assert learned(tokenizer, row) == "assistant<|im_end|>the<|im_end|>"


@pytest.mark.parametrize("marks", ["no-marks", "marks", "marks-without-end"])
def test_an_answer_can_be_left_out(marks: str, lab: Any) -> None:
    tokenizer = lab.byte_level(lab.marked(lab.families["zephyr"].template, marks))
    turns = [Message("user", "a"), Message("assistant", "bad", train=False), Message("user", "b")]
    (row,) = rows(tokenizer, example(*turns, Message("assistant", "good")))
    assert learned(tokenizer, row) == "good</s>"
    assert "bad" in text(tokenizer, row.input_ids)


def test_a_conversation_may_end_with_a_question(lab: Any) -> None:
    tokenizer = lab.byte_level(lab.marked(lab.families["zephyr"].template, "no-marks"))
    (row,) = rows(tokenizer, lab.chat("a", "b", "and now?"))
    assert text(tokenizer, row.input_ids) == "<|user|>\na</s>\n<|assistant|>\nb</s>"
    assert learned(tokenizer, row) == "b</s>"


def test_a_template_without_an_end_token_gets_the_end_of_text(lab: Any) -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    tokenizer = lab.byte_level(template + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
    (row,) = rows(tokenizer, lab.chat("a", "b", "c", "d"))
    assert text(tokenizer, row.input_ids) == "user: a\nassistant: b\nuser: c\nassistant: d</s>"
    assert learned(tokenizer, row) == "bd</s>"


def test_an_end_written_in_letters_is_learned_and_closed(lab: Any) -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '###\\n' }}{% endfor %}"
    tokenizer = lab.byte_level(template + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
    (row,) = rows(tokenizer, lab.chat("a", "b", "c", "d"))
    assert learned(tokenizer, row) == "b###d###</s>"


def test_a_space_before_the_answer_is_not_joined_with_it(lab: Any) -> None:
    """As in generation, where the prompt is encoded without the answer."""
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
    tokenizer = lab.byte_level(template + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
    joined = tokenizer(" hello", add_special_tokens=False)["input_ids"]
    assert len(joined) == 1
    (row,) = rows(tokenizer, lab.chat("as", "hello"))
    prompt = tokenizer("user: as</s>assistant: ", add_special_tokens=False)["input_ids"]
    assert row.input_ids == prompt + tokenizer("hello</s>", add_special_tokens=False)["input_ids"]
    assert learned(tokenizer, row) == "hello</s>"


def test_the_token_that_begins_the_next_turn_does_not_end_this_one(lab: Any) -> None:
    template = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
    tokenizer = lab.byte_level(template + "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
    (row,) = rows(tokenizer, lab.chat("a", "b", "c", "d"))
    assert text(tokenizer, row.input_ids) == "<|user|>a<|assistant|>b<|user|>c<|assistant|>d</s>"
    assert learned(tokenizer, row) == "bd</s>"


def test_all_that_is_marked_is_learned(lab: Any) -> None:
    template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] + '<|im_start|>and more' }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
        "{{ '<|end|>' }}{% endfor %}"
    )
    (row,) = rows(tokenizer := lab.byte_level(template), lab.chat("a", "b", "c", "d"))
    assert learned(tokenizer, row) == "b<|im_start|>and more<|end|>d<|im_start|>and more<|end|>"


def test_text_that_is_normalized_is_learned_as_it_is_normalized(lab: Any) -> None:
    tokenizer = lab.byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    (row,) = rows(tokenizer, lab.chat("a", "e\u0301"))
    assert learned(tokenizer, row) == "\u00e9</s>"


def test_text_that_the_tokenizer_cannot_say_is_refused(lab: Any) -> None:
    tokenizer = lab.byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ModelError, match=r"rows.jsonl:1: .* turns 'Hello</s>' into 'hello</s>' \[LF-TEMPLATE-005\]"):
        rows(tokenizer, lab.chat("a", "Hello"))


def test_rows_too_short_to_learn_from_are_refused(lab: Any) -> None:
    for short in (lab.chat("a", "b"), example(text="a")):
        with pytest.raises(DataError, match=r"none of 1 examples keeps an answer within 1 tokens.*\[LF-DATA-023\]"):
            rows(lab.byte_level(), short, max_seq_length=1)


@pytest.mark.parametrize("answer", ["hello", "  hello", "\n\nhello\n\n"])
def test_tokens_that_take_the_blanks_beside_them(answer: str, lab: Any) -> None:
    tokenizer = lab.byte_level(lab.marked(lab.families["phi3"].template, "no-marks"))
    taking = [AddedToken(token, rstrip=True, special=True) for token in ("<|user|>", "<|assistant|>", "<|end|>")]
    tokenizer.add_special_tokens({"additional_special_tokens": taking})
    assert tokenizer.decode(tokenizer("<|end|>  a")["input_ids"]) == "<|end|>a"
    (row,) = rows(tokenizer, lab.chat("the", answer, "the", answer))
    assert learned(tokenizer, row) == f"{answer}<|end|>{answer}<|end|>"


def test_blank_tokens_end_nothing(lab: Any) -> None:
    template = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '\n\n</s>' }}{% endfor %}"
    tokenizer = lab.byte_level(template + "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
    tokenizer.add_tokens(["\n\n"])
    (row,) = rows(tokenizer, lab.chat("a", "b", "c", "d"))
    assert learned(tokenizer, row) == "b\n\n</s>d\n\n</s>"


def test_a_conversation_without_an_answer_is_counted(lab: Any) -> None:
    tokenizer = lab.byte_level(lab.marked(lab.families["chatml"].template, "no-marks"), "<|im_end|>")
    options = {"stage": "sft", "max_seq_length": 99, "train_on_inputs": False}
    found = tokenize([lab.chat("a"), lab.chat("a", "b")], tokenizer, **options)
    assert (found.counts["dropped_without_answer"], found.counts["rows"]) == (1, 1)


def test_whatever_a_template_raises_is_a_refusal(lab: Any) -> None:
    tokenizer = lab.byte_level("{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}")
    with pytest.raises(ModelError, match=r"rows.jsonl:1: the chat template refuses .*\[LF-TEMPLATE-002\]"):
        rows(tokenizer, lab.chat("a", "b"))


def test_golden_ids(lab: Any) -> None:
    """Bytes are their place in the sorted alphabet of byte-level BPE; 256 and up are merges, then special tokens."""
    tokenizer = lab.byte_level(lab.marked(lab.families["chatml"].template, "no-marks"), "<|im_end|>")
    (row,) = rows(tokenizer, lab.chat("hello the", "as."))
    user, assistant = [84, 82, 68, 81], [268, 82, 72, 82, 83, 64, 77, 83]
    line, start, end = 198, 273, 274
    assert row.input_ids == [start, *user, line, 266, 262, end, line, start, *assistant, line, 268, 13, end]
    assert row.labels == [IGNORED] * 20 + [268, 13, end]


def test_a_refusal_names_the_row(lab: Any) -> None:
    tokenizer = lab.byte_level(lab.marked(lab.families["gemma"].template, "no-marks"))
    refused = lab.chat("a", "b", system="c")
    with pytest.raises(ModelError) as error:
        rows(tokenizer, lab.chat("a", "b"), refused, refused)
    assert [(problem.id, problem.where) for problem in error.value.problems] == [
        ("LF-TEMPLATE-002", "rows.jsonl:1")
    ] * 2
    assert "System role not supported" in str(error.value)


def test_many_refusals_are_counted(lab: Any) -> None:
    tokenizer = lab.byte_level(lab.marked(lab.families["gemma"].template, "no-marks"))
    with pytest.raises(ModelError, match="and 1980 more problems not shown") as error:
        rows(tokenizer, *[lab.chat("a", "b", system="c")] * 2000)
    assert len(error.value.problems) == 21


def test_a_broken_template_is_the_models_fault(lab: Any) -> None:
    with pytest.raises(ModelError, match=r"the chat template is not valid: .*line 1") as error:
        rows(lab.byte_level("{% for m in messages %}"), lab.chat("a", "b"))
    assert error.value.problems[0].id == "LF-TEMPLATE-001"


def test_a_template_that_leaves_answers_out_is_refused(lab: Any) -> None:
    template = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    with pytest.raises(ModelError, match=r"rows.jsonl:1: turn 2, an answer, cannot be found .*\[LF-TEMPLATE-003\]"):
        rows(lab.byte_level(template), lab.chat("a", "b"))


def test_a_tokenizer_without_end_of_text_is_refused(lab: Any) -> None:
    tokenizer = lab.byte_level()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"no end-of-text token.*eos_token.*\[LF-TEMPLATE-004\]"):
        rows(tokenizer, lab.chat("a", "b"))


class TestWithoutTemplate:
    def test_alpaca_is_written_in_sections(self, lab: Any) -> None:
        prompt = "### Instruction:\na\n\n### Input:\nb\n\n### Response:\n"
        tokenizer = lab.byte_level()
        (row,) = rows(tokenizer, example(Message("user", "a\n\nb"), Message("assistant", "c"), prompt=prompt))
        assert text(tokenizer, row.input_ids) == prompt + "c</s>"
        assert learned(tokenizer, row) == "c</s>"

    def test_a_chat_is_written_in_sections_with_an_end_after_each_answer(self, lab: Any) -> None:
        tokenizer = lab.byte_level()
        (row,) = rows(tokenizer, lab.chat("a", "b", "c", "\nd", system="s"))
        ask = "### Instruction:\n{}\n\n### Response:\n"
        assert text(tokenizer, row.input_ids) == f"s\n\n{ask.format('a')}b</s>\n\n{ask.format('c')}\nd</s>"
        assert learned(tokenizer, row) == "b</s>\nd</s>"

    def test_the_prompt_to_generate_from_is_what_was_learned_from(self, lab: Any) -> None:
        tokenizer = lab.byte_level()
        trained = lab.chat("a", "b", "c", "\n\nd", system="s")
        (row,) = rows(tokenizer, trained)
        answer = len(row.labels) - row.labels[::-1].index(IGNORED)
        prompt = plain_prompt(trained.messages[:-1], end=tokenizer.eos_token)
        assert tokenizer(prompt, add_special_tokens=False)["input_ids"] == row.input_ids[:answer]

    def test_what_the_tokenizer_begins_with_comes_once(self, lab: Any) -> None:
        tokenizer = lab.beginning(lab.byte_level())
        bos = tokenizer.bos_token_id
        for begun in ("a", "<s>a"):
            (row,) = rows(tokenizer, example(text=begun))
            assert row.input_ids[:1] == [bos]
            assert row.input_ids.count(bos) == 1
        (row,) = rows(tokenizer, lab.chat("a", "b"))
        assert row.input_ids.count(bos) == 1
        assert row.labels[0] == IGNORED

    def test_a_template_writes_its_own_beginning(self, lab: Any) -> None:
        tokenizer = lab.beginning(lab.byte_level(lab.marked(lab.families["llama3"].template, "no-marks"), "<|eot_id|>"))
        (row,) = rows(tokenizer, lab.chat("a", "b"))
        assert row.input_ids.count(tokenizer.bos_token_id) == 1
        tokenizer = lab.beginning(lab.byte_level(lab.marked(lab.families["zephyr"].template, "no-marks")))
        (row,) = rows(tokenizer, lab.chat("a", "b"))
        assert tokenizer.bos_token_id not in row.input_ids


class TestRawText:
    @pytest.mark.parametrize("stage", ["pt", "sft"])
    @pytest.mark.parametrize("template", [None, "chatml"])
    def test_all_of_it_is_learned_with_an_end(self, stage: str, template: str | None, lab: Any) -> None:
        source = template and lab.marked(lab.families[template].template, "no-marks")
        tokenizer = lab.byte_level(source)
        (row,) = rows(tokenizer, example(text="hello the\n\n"), stage=stage)
        assert row.labels == row.input_ids
        assert text(tokenizer, row.input_ids) == "hello the\n\n</s>"

    @pytest.mark.parametrize("limit", [2, 3, 5, 7, 100])
    def test_long_text_is_cut_and_every_token_is_learned_once(self, limit: int, lab: Any) -> None:
        tokenizer = lab.beginning(lab.byte_level())
        long = "one two three four five six"
        cut = rows(tokenizer, example(text=long), stage="pt", max_seq_length=limit)
        assert max(len(row.input_ids) for row in cut) <= limit
        whole = tokenizer(f"{long}</s>")["input_ids"]
        predicted = [(row.input_ids[at - 1], label) for row in cut for at, label in enumerate(row.labels) if at]
        assert predicted == list(pairwise(whole))
        assert all(label != IGNORED for _, label in predicted)

    def test_pieces_are_counted(self, lab: Any) -> None:
        tokenized = tokenize(
            [example(text="a" * 25), example(text="a")],
            lab.byte_level(),
            stage="pt",
            max_seq_length=10,
            train_on_inputs=False,
        )
        assert tokenized.counts["cut_into_pieces"] == 1
        assert tokenized.counts["examples"] == 2
        assert tokenized.counts["rows"] == len(tokenized.rows) == 4
        assert tokenized.counts["trained_tokens"] == 26 + 2

    def test_stage_pt_learns_whole_conversations(self, lab: Any) -> None:
        tokenizer = lab.byte_level(lab.marked(lab.families["zephyr"].template, "no-marks"))
        (row,) = rows(tokenizer, lab.chat("a", "b"), stage="pt")
        assert row.labels == row.input_ids
        assert text(tokenizer, row.input_ids) == "<|user|>\na</s>\n<|assistant|>\nb</s>\n"


def test_train_on_inputs_learns_prompts_too(lab: Any) -> None:
    tokenizer = lab.byte_level(lab.marked(lab.families["zephyr"].template, "marks"))
    (row,) = rows(tokenizer, lab.chat("a", "b"), train_on_inputs=True)
    assert row.labels == row.input_ids
    assert text(tokenizer, row.input_ids).startswith("<|user|>\na</s>")
