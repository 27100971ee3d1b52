"""What methods are told of a training, and what is kept of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llamafarm.api import AdapterSpec, Method, NoConfig, TrainingConfig
from llamafarm.data.tokens import TokenizedRow
from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch._methods import Methods


class Counting(Method[NoConfig]):
    name = "counting"

    def adapter(self):
        return AdapterSpec("counting")

    def apply(self, model, run):
        return model

    def begin(self, model, start, run):
        self.steps = start.steps
        self.seen = [list(start.batches(2)), list(start.batches(2))]

    def penalty(self, model):
        return model.weight.square().sum()

    def stepped(self, model, step, run):
        self.last = (step.step, step.steps, model.weight.grad.clone(), step.optimizer)

    def state(self, model):
        return {"last": self.last[0], "gradient": self.last[2]}

    def load_state(self, model, state):
        self.loaded = state


class Silent(Counting):
    name = "silent"
    begin, penalty, stepped, state = Method.begin, Method.penalty, Method.stepped, Method.state


ROWS = [TokenizedRow([1, *range(5, 5 + length)], [-100, *range(5, 5 + length)]) for length in (2, 4, 3)]


@pytest.fixture
def stack(tmp_path):
    counting, silent = Counting(NoConfig()), Silent(NoConfig())
    return counting, silent, Methods(nn.Linear(2, 2), [counting, silent], RecordingRun(tmp_path))


def test_they_see_every_row_once_with_the_labels_of_each_token(stack):
    counting, _, methods = stack
    methods.begin(ROWS, 0, TrainingConfig(seed=3), 7)
    assert counting.steps == 7
    first, again = counting.seen
    assert [len(batch["input_ids"]) for batch in first] == [2, 1]
    found = []
    for batch, same in zip(first, again, strict=True):
        assert all(torch.equal(batch[name], same[name]) for name in batch), "another pass, another order"
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            real = mask.bool()
            assert (labels[~real] == -100).all()
            found.append((ids[real].tolist(), labels[real].tolist()))
    assert sorted(found) == sorted((list(row.input_ids), list(row.labels)) for row in ROWS)


def test_a_step_is_told_with_its_gradients_and_the_optimizer_itself(stack):
    counting, _, methods = stack
    optimizer = torch.optim.SGD(methods.model.parameters())
    term = methods.penalty()
    assert term is not None
    term.backward()
    wrapped = type("Wrapped", (), {"optimizer": optimizer})()
    methods.stepped(3, 9, wrapped, list)
    step, steps, gradient, given = counting.last
    assert (step, steps, given) == (3, 9, optimizer)
    assert torch.equal(gradient, 2 * methods.model.weight)


def test_only_what_has_a_state_is_kept_and_gets_it_back(stack):
    counting, silent, methods = stack
    counting.last = (4, 9, torch.ones(2), None)
    state = methods.state_dict()
    assert set(state) == {"counting"}
    methods.load_state_dict(state)
    assert counting.loaded["last"] == 4
    assert not hasattr(silent, "loaded")


def test_without_methods_nothing_is_added(tmp_path):
    assert Methods(nn.Linear(2, 2), [], RecordingRun(tmp_path)).penalty() is None
