"""Ids around answers: what is found, fed back, makes the mask that the template path makes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llamafarm.api import DatasetConfig, Example, MaskAuditConfig, Message, RowRef
from llamafarm.data.explicit import ExplicitMask, explicit_mask
from llamafarm.data.find_split import KNOWN, find_split, known_ids
from llamafarm.data.tokens import IGNORED, tokenize
from llamafarm.errors import DataError, ModelError

SETTINGS = {"stage": "sft", "max_seq_length": 4096, "train_on_inputs": False}
word = st.text("helo as.", min_size=1, max_size=9).filter(lambda text: text.strip() == text)
words = st.lists(st.tuples(word, word), min_size=1, max_size=3).map(lambda pairs: [*sum(pairs, ())])


def parsed(mask: ExplicitMask) -> DatasetConfig:
    """The mask as it is pasted."""
    return DatasetConfig(prefix_ids=",".join(map(str, mask.prefix)), suffix_ids=",".join(map(str, mask.suffix)))


@settings(max_examples=8, deadline=None)
@given(texts=words)
def test_what_is_found_reproduces_the_mask(tokenizer: Any, family: Any, lab: Any, texts: list[str]) -> None:
    found = find_split(tokenizer)
    explicit = explicit_mask(parsed(found.require()), tokenizer)
    example = lab.chat(*texts)
    (by_template,) = tokenize([example], tokenizer, **SETTINGS).rows
    (by_ids,) = tokenize([example], tokenizer, **SETTINGS, explicit=explicit, mask_audit=MaskAuditConfig()).rows
    assert (by_ids.input_ids, by_ids.labels) == (by_template.input_ids, by_template.labels)


def test_one_half_is_completed_by_the_other(tokenizer: Any, family: Any) -> None:
    whole = find_split(tokenizer).require()
    halves = (DatasetConfig(prefix_ids=whole.prefix), DatasetConfig(suffix_ids=whole.suffix))
    assert [explicit_mask(half, tokenizer) for half in halves] == [whole, whole]
    assert explicit_mask(DatasetConfig(), tokenizer) is None


def test_the_end_of_a_turn_is_the_suffix(tokenizer: Any, family: Any) -> None:
    found = find_split(tokenizer)
    assert (found.suffix, len(found.suffix_ids)) == (family.end, 1)
    # an answer alone shows it, unless the template refuses that, or what stands before answers ends the user's turn
    assert found.lone is not ("must alternate" in family.template or "[INST]" in family.template)


def test_an_answer_alone_is_believed_only_if_it_finds_the_answers_of_conversations(lab: Any) -> None:
    alone = "{% if messages | length == 1 %}{{ '(alone) ' + messages[0]['content'] + eos_token }}{% else %}"
    template = alone + lab.marked(lab.families["zephyr"].template, "no-marks") + "{% endif %}"
    found = find_split(lab.byte_level(template))
    assert not found.lone
    assert found.mask
    assert "(alone)" not in found.prefix


def test_without_a_template_headings_are_found(lab: Any) -> None:
    found = find_split(lab.byte_level())
    assert (found.prefix, found.suffix, found.template) == ("### Response:\n", "</s>", "")
    assert found.mask


def test_the_whole_suffix_is_searched_for_and_learned() -> None:
    mask = ExplicitMask((1, 2), (7, 8))
    assert list(mask.find([0, 1, 2, 5, 7, 5, 7, 8, 0, 1, 2, 6, 7, 8, 9])) == [(3, 8), (11, 14)]
    assert list(mask.find([1, 2, 5, 7])) == [(2, 4)], "a cut answer goes to the end"
    assert list(mask.find([1, 2, 5, 7, 8, 1, 2])) == [(2, 5)], "a prompt at the end is no answer"
    assert list(mask.find([5, 7, 8])) == []


def test_llama_3_ends_an_answer_by_the_end_of_its_turn(lab: Any) -> None:
    template = lab.marked(lab.families["llama3-always-prompting"].template, "no-marks")
    tokenizer = lab.byte_level(template, "<|eot_id|>")
    mask = find_split(tokenizer).require()
    (row,) = tokenize([lab.chat("a", "b", "c", "d")], tokenizer, **SETTINGS, explicit=mask).rows
    learned = tokenizer.decode([label for label in row.labels if label != IGNORED])
    assert learned == "b<|eot_id|>d<|eot_id|>"
    assert mask.suffix == (tokenizer.eos_token_id,)


def test_no_answer_is_learned_where_ids_find_none(lab: Any) -> None:
    tokenizer = lab.byte_level(lab.marked(lab.families["zephyr"].template, "no-marks"))
    rows = [lab.chat("a", "b")] * 2
    with pytest.raises(DataError, match="LF-DATA-023"):
        tokenize(rows, tokenizer, **SETTINGS, explicit=ExplicitMask((1, 1, 1), (2,)))


def test_answers_to_leave_out_are_counted_off(lab: Any) -> None:
    tokenizer = lab.byte_level(lab.marked(lab.families["zephyr"].template, "no-marks"))
    mask = find_split(tokenizer).require()
    turns = (Message("user", "a"), Message("assistant", "bad", train=False), Message("user", "c"))
    example = Example(RowRef("rows.jsonl", 7), (*turns, Message("assistant", "good")))
    (row,) = tokenize([example], tokenizer, **SETTINGS, explicit=mask).rows
    assert tokenizer.decode([label for label in row.labels if label != IGNORED]) == "good</s>"
    with pytest.raises(DataError, match=r"rows.jsonl:7: prefix_ids find 0 answers of 2.*LF-DATA-093"):
        tokenize([example], tokenizer, **SETTINGS, explicit=ExplicitMask((1, 1, 1), (2,)))


def test_a_template_that_refuses_or_writes_nothing(lab: Any) -> None:
    refusing = lab.byte_level("{{ raise_exception('no') }}")
    with pytest.raises(ModelError, match="LF-TEMPLATE-002"):
        find_split(refusing)
    bare = lab.byte_level("{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}")
    with pytest.raises(ModelError, match="LF-TEMPLATE-020"):
        find_split(bare)


@pytest.mark.parametrize("value", ["1,2,3", "1 2 3", [1, 2, 3], "1, 2, 3", ["1", "2", "3"]])
def test_ids_are_read_as_they_are_pasted(value: Any) -> None:
    assert DatasetConfig(prefix_ids=value).prefix_ids == (1, 2, 3)
    assert DatasetConfig(suffix_ids=2).suffix_ids == (2,)


@pytest.mark.parametrize("value", ["1,x", "", [], -1, "1.5", [[1]], {"a": 1}])
def test_ids_that_are_none_are_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="Error parsing prefix_ids or suffix_ids"):
        DatasetConfig(suffix_ids=value)


def test_families_are_known_by_name() -> None:
    assert known_ids("Qwen/Qwen2-0.5B", 151646) == ("qwen2", KNOWN["qwen2"])
    assert known_ids("meta-llama/Meta-Llama-3-8B-Instruct", 128256) == (
        "llama-3",
        ExplicitMask((128006, 78191, 128007, 271), (128009,)),
    )
    assert known_ids("eryk-mazus/polka-1.1b-chat", 43904) == (
        "polka-1.1",
        ExplicitMask((43883, 20255, 13), (43882, 29871, 13)),
    )
    assert known_ids("TinyLlama/TinyLlama-1.1B", 32000) == (
        "tinyllama",
        ExplicitMask((29966, 29989, 465, 22137, 29989, 29958, 13), (2,)),
    )
    assert known_ids("builtin:tiny", 1536) is None
    assert known_ids("my-llama-3-from-scratch", 2048) is None  # another vocabulary
