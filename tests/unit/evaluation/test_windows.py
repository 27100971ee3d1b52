from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llamafarm.data.fit import IGNORED
from llamafarm.evaluation.windows import windows


@given(st.integers(2, 200), st.integers(2, 40), st.data())
def test_every_token_but_the_first_is_predicted_exactly_once(size, length, data):
    stride = data.draw(st.integers(1, length - 1))
    ids = list(range(1000, 1000 + size))
    predicted = []
    for window in windows(ids, length, stride, example=7):
        assert len(window.input_ids) <= length
        assert window.example == 7
        assert window.labels[0] == IGNORED  # nothing stands before it
        predicted += [label for label in window.labels if label != IGNORED]
        kept = [(i, j) for i, j in zip(window.input_ids, window.labels, strict=True) if j != IGNORED]
        assert all(token == label for token, label in kept)
    assert predicted == ids[1:]


def test_later_windows_give_context_before_what_they_predict():
    first, second = windows([1, 2, 3, 4, 5, 6], 4, 2)
    assert (first.input_ids, first.labels) == ([1, 2, 3, 4], [IGNORED, 2, 3, 4])
    assert (second.input_ids, second.labels) == ([3, 4, 5, 6], [IGNORED, IGNORED, 5, 6])


@given(st.integers(2, 200), st.integers(3, 40), st.data())
def test_each_window_begins_as_rows_do_in_training(size, length, data):
    stride = data.draw(st.integers(1, length - 2))
    ids = [7, *range(1000, 1000 + size)]
    made = list(windows(ids, length, stride, first=7))
    assert all(len(row.input_ids) <= length and row.input_ids[0] == 7 for row in made)
    assert [label for row in made for label in row.labels if label != IGNORED] == ids[1:]
    for row in made:
        for at, label in enumerate(row.labels):
            if label != IGNORED:
                assert row.input_ids[at - 1] in (label - 1, 7), "the token before it stands before it"


def test_measured_rows_begin_as_those_of_training(tiny_model_dir):
    from llamafarm.api import BaseModelConfig, Example, FineTunerConfig, Message, RowRef
    from llamafarm.evaluation.evaluate import _rows
    from llamafarm.models._tokenizer import load_tokenizer

    tokenizer = load_tokenizer(BaseModelConfig(huggingface_id=str(tiny_model_dir("llama"))))
    chat = Example(RowRef("x", 1), (Message("user", "On."), Message("assistant", "On it is.")))
    examples = [chat, Example(RowRef("x", 2), text="Lock the door. " * 9)]
    config = FineTunerConfig(training={"max_seq_length": 16})
    made = _rows(examples, tokenizer, config, None, 7)
    assert len(made) > 3
    assert all(row.input_ids[0] == 7 and row.labels[0] == IGNORED and len(row.input_ids) <= 16 for row in made)
