from __future__ import annotations

import pytest
import torch

from llamafarm.data.fit import IGNORED, TokenizedRow
from llamafarm.evaluation._likelihood import likelihoods
from llamafarm.models._load import load_for_generation

ROWS = [
    TokenizedRow([5, 9, 7, 12, 30, 41], [IGNORED, IGNORED, 7, 12, 30, 41]),
    TokenizedRow([5, 9, 3], [IGNORED, IGNORED, 3]),
    TokenizedRow([8, 2, 4, 6], [8, IGNORED, 4, IGNORED]),
    TokenizedRow([8, 2], [IGNORED, IGNORED]),
]


def by_hand(model, row):
    """One token at a time: the likelihood of each labelled token given all before it."""
    loss, right, targets = 0.0, 0, 0
    for place in range(1, len(row.input_ids)):
        if row.labels[place] == IGNORED:
            continue
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids[:place]])).logits[0, -1]
        loss -= torch.log_softmax(logits.float(), -1)[row.labels[place]].item()
        right += int(logits.argmax()) == row.labels[place]
        targets += 1
    return loss, right, targets


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_sums_are_those_of_a_loop_by_hand(tiny_model_dir, architecture):
    model, _ = load_for_generation(str(tiny_model_dir(architecture)))
    for found, row in zip(likelihoods(model, ROWS, batch_size=3), ROWS, strict=True):
        loss, right, targets = by_hand(model, row)
        # float32 rounding of a padded batch against a row alone
        assert found.loss == pytest.approx(loss, abs=1e-5)
        assert (found.right, found.targets) == (right, targets)


def test_the_batch_size_does_not_matter(tiny_model_dir):
    model, _ = load_for_generation(str(tiny_model_dir("llama")))
    one, four = likelihoods(model, ROWS, batch_size=1), likelihoods(model, ROWS, batch_size=4)
    assert [found.targets for found in one] == [found.targets for found in four]
    assert [found.loss for found in one] == pytest.approx([found.loss for found in four], abs=1e-5)
