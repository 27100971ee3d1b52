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
