"""What is learned: the assistant's text with the token that ends it, whatever the template, and never the prompt."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamafarm.data.tokens import IGNORED, tokenize

LONG = 100_000


def tokenized(tokenizer: Any, *examples: Any, **options: Any) -> Any:
    settings = {"stage": "sft", "max_seq_length": LONG, "train_on_inputs": False, **options}
    return tokenize(examples, tokenizer, **settings)


def decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def learned(tokenizer: Any, row: Any) -> list[str]:
    """The runs of learned tokens, as text."""
    runs: list[list[int]] = []
    before = IGNORED
    for label, token in zip(row.labels, row.input_ids, strict=True):
        if label != IGNORED:
            assert label == token
            if before == IGNORED:
                runs.append([])
            runs[-1].append(label)
        before = label
    return [decoded(tokenizer, run) for run in runs]


@pytest.fixture(scope="session")
def space(tokenizer: Any) -> Any:
    """Tokenizers of the sentencepiece kind add and drop spaces: what they say is compared without spaces."""
    adds = decoded(tokenizer, tokenizer("</s>a", add_special_tokens=False)["input_ids"]) != "</s>a"
    return (lambda texts: [text.replace(" ", "") for text in texts]) if adds else list


def test_answers_and_their_end_are_learned_and_nothing_else(tokenizer: Any, family: Any, space: Any, lab: Any) -> None:
    system = "hello" if family.system else None
    row = lab.chat("hello as on", "the hello", "on?", "as\n\nthe", system=system)
    (only,) = tokenized(tokenizer, row).rows
    expected = [family.learned(text) + family.end for text in ("the hello", "as\n\nthe")]
    assert space(learned(tokenizer, only)) == space(expected)
    assert only.labels[-1] != IGNORED


def test_the_text_is_the_one_that_the_template_writes(tokenizer: Any, family: Any, space: Any, lab: Any) -> None:
    row = lab.chat("hello as on", "the hello", "on?", "as\n\nthe")
    whole = tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in row.messages], return_dict=False
    )
    (only,) = tokenized(tokenizer, row).rows
    assert only.input_ids == whole[: len(only.input_ids)]
    rest = decoded(tokenizer, whole[len(only.input_ids) :]).replace(" ", "").strip()
    assert rest in ("", tokenizer.eos_token, "<|start_header_id|>assistant<|end_header_id|>")


def test_transformers_marks_the_same_tokens(family: Any, lab: Any) -> None:
    tokenizer = lab.byte_level(lab.marked(family.template, "marks"), family.eos)
    row = lab.chat("hello as on", "the hello", "on?", "as\n\nthe")
    chat = [{"role": message.role, "content": message.content} for message in row.messages]
    theirs = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    (ours,) = tokenized(tokenizer, row).rows
    mask = [int(label != IGNORED) for label in ours.labels]
    assert mask == theirs["assistant_masks"][: len(mask)]
    assert not any(theirs["assistant_masks"][len(mask) :])


nasty = st.sampled_from(
    [
        "hello",
        "\n",
        "\n\n",
        " ",
        "  ",
        "assistant",
        "user\n",
        "<|im_end|>",
        "</s>",
        "[/INST]",
        ".",
        "ß",
        "😀",
        "é",
        "🇩🇪",
    ]
)
content = st.one_of(st.text(max_size=12), st.lists(nasty, max_size=6).map("".join)).filter(str.strip)
turns = st.lists(st.tuples(content, content), min_size=1, max_size=3).map(lambda pairs: [*sum(pairs, ())])


@settings(max_examples=60, deadline=None)
@given(texts=turns)
@example(texts=["a", "\n\nb", "a", "\n\nb"])
@example(texts=["the", "the", "the", "the"])
@example(texts=["hello<|im_end|>", "hello", "hello", "</s>hello"])
def test_any_conversation_is_learned_as_it_is(
    tokenizer: Any, family: Any, space: Any, lab: Any, texts: list[str]
) -> None:
    (only,) = tokenized(tokenizer, lab.chat(*texts)).rows
    expected = [family.learned(answer) + family.end for answer in texts[1::2]]
    assert space(learned(tokenizer, only)) == space(expected)
