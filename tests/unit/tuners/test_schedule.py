from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.api import TrainingConfig
from llamafarm_tuners.pytorch.schedule import NEVER, Rhythm, plan_sizes, rhythm, warmup_steps


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "devices", "epochs", "steps"),
    [
        (10, 1, 4, 1, 1, 3),  # the last partial accumulation steps too
        (10, 4, 1, 1, 1, 3),
        (8, 4, 2, 1, 3, 3),
        (100, 4, 4, 1, 1, 7),
        (100, 4, 4, 2, 1, 4),
        (3, 8, 8, 1, 2, 2),
        (10, 1, 1, 1, 0.5, 5),
        (10, 4, 1, 1, 0.01, 1),
    ],
)
def test_steps_of_a_run(rows, batch, accumulation, devices, epochs, steps):
    training = TrainingConfig(batch_size=batch, gradient_accumulation_steps=accumulation, num_epochs=epochs)
    assert plan_sizes(rows, training, devices).steps == steps


def test_max_steps_overrides_epochs():
    assert plan_sizes(10, TrainingConfig(max_steps=7, num_epochs=100)).steps == 7
    assert plan_sizes(10, TrainingConfig(max_steps=-1, num_epochs=2, batch_size=5)).steps == 4


@given(rows=st.integers(1, 500), batch=st.integers(1, 9), accumulation=st.integers(1, 9))
def test_an_epoch_sees_every_row(rows, batch, accumulation):
    training = TrainingConfig(batch_size=batch, gradient_accumulation_steps=accumulation, num_epochs=1)
    sizes = plan_sizes(rows, training)
    seen = sizes.steps * batch * accumulation
    assert seen >= rows > seen - batch * accumulation
    assert sizes.epoch(sizes.steps) == 1.0


@pytest.mark.parametrize(
    ("given_", "expected"), [({}, 3), ({"warmup_ratio": 0.1}, 10), ({"warmup_steps": 5, "warmup_ratio": 0.5}, 5)]
)
def test_warmup_steps_override_the_ratio_unless_zero(given_, expected):
    assert warmup_steps(TrainingConfig(**given_), 100) == expected


@pytest.mark.parametrize(
    ("strategy", "every", "expected"),
    [
        ("no", 5, 0),
        ("steps", 5, 5),
        ("steps", -1, 25),
        ("steps", NEVER, 0),
        ("steps", NEVER + 1, 0),
        ("epoch", 5, 25),
    ],
)
def test_rhythms(strategy, every, expected):
    sizes = plan_sizes(100, TrainingConfig(batch_size=4, num_epochs=2))
    assert rhythm(strategy, every, sizes) == Rhythm(expected)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({}, 25),
        ({"eval_steps": 5}, 5),
        ({"eval_steps": -1}, 25),
        ({"eval_steps": NEVER}, 0),
        ({"eval_strategy": "epoch", "eval_steps": 5}, 25),
        ({"eval_strategy": "steps"}, 100),
        ({"eval_strategy": "no", "eval_steps": 5}, 0),
    ],
)
def test_steps_between_evaluations_are_obeyed_unless_the_strategy_says_otherwise(given_, expected):
    training = TrainingConfig(batch_size=4, num_epochs=2, **given_)
    strategy, every = training.eval_interval
    assert rhythm(strategy, every, plan_sizes(100, training)) == Rhythm(expected)


def test_a_rhythm_of_nothing_is_never_due():
    assert not any(Rhythm(0).due(step) for step in range(10))
    assert [step for step in range(1, 10) if Rhythm(4).due(step)] == [4, 8]
