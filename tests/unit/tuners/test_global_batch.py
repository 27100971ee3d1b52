from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.api import Decision, TrainingConfig
from llamafarm.errors import Problem, StrategyError
from llamafarm_tuners.pytorch.global_batch import check_global_batch, settle_batches

MICRO, ACCUMULATION = "training.batch_size", "training.gradient_accumulation_steps"


def settle(devices: int = 1, told: tuple[str, ...] = (), **options: int) -> tuple[int, int]:
    places = {path: f"s.yaml:{line}" for line, path in enumerate((*told, "training.global_batch_size"), 1)}
    settled = settle_batches(TrainingConfig(**options), places, devices)
    return settled.batch_size, settled.gradient_accumulation_steps


def test_without_a_global_batch_nothing_changes():
    assert settle(devices=8, batch_size=3, gradient_accumulation_steps=5) == (3, 5)


def test_a_size_that_is_to_be_found_gives_way():
    training = TrainingConfig.model_validate({"batch_size": "auto", "global_batch_size": 6})
    settled = settle_batches(training, {MICRO: "s.yaml:1", "training.global_batch_size": "s.yaml:2"}, 1)
    assert (settled.batch_size, settled.gradient_accumulation_steps) == (3, 2)


@pytest.mark.parametrize(
    ("options", "told", "devices", "expected"),
    [
        ({"global_batch_size": 128, "batch_size": 2}, (MICRO,), 1, (2, 64)),
        ({"global_batch_size": 32, "batch_size": 8}, (MICRO,), 1, (8, 4)),
        ({"global_batch_size": 64, "batch_size": 2}, (MICRO,), 1, (2, 32)),
        ({"global_batch_size": 64, "batch_size": 2}, (MICRO,), 2, (2, 16)),
        ({"global_batch_size": 64, "gradient_accumulation_steps": 4}, (ACCUMULATION,), 2, (8, 4)),
        ({"global_batch_size": 6, "batch_size": 4}, (), 1, (3, 2)),
        ({"global_batch_size": 7, "batch_size": 4}, (), 1, (1, 7)),
        ({"global_batch_size": 2, "batch_size": 4}, (), 1, (2, 1)),
        (
            {"global_batch_size": 16, "batch_size": 4, "gradient_accumulation_steps": 2},
            (MICRO, ACCUMULATION),
            2,
            (4, 2),
        ),
    ],
)
def test_the_third_number_follows_from_two(options, told, devices, expected):
    assert settle(devices, told, **options) == expected


@pytest.mark.parametrize(
    ("options", "told", "devices", "words"),
    [
        (
            {"global_batch_size": 128, "batch_size": 7},
            (MICRO,),
            2,
            (
                "batch_size 7 (at s.yaml:1) does not divide 128 rows over 2 devices; "
                "set batch_size: 4 or 8, or set global_batch_size: 126 or 140"
            ),
        ),
        ({"global_batch_size": 4, "batch_size": 8}, (MICRO,), 1, "set batch_size: 4, or set global_batch_size: 8"),
        (
            {"global_batch_size": 9},
            (),
            2,
            "9 rows a step cannot be shared by 2 devices; set global_batch_size: 8 or 10",
        ),
        (
            {"global_batch_size": 16, "batch_size": 4, "gradient_accumulation_steps": 2},
            (MICRO, ACCUMULATION),
            1,
            "4 x 2 x 1 device make 8, not 16 (batch_size at s.yaml:1, gradient_accumulation_steps at s.yaml:2)",
        ),
        (
            {"global_batch_size": 10, "gradient_accumulation_steps": 4},
            (ACCUMULATION,),
            1,
            "gradient_accumulation_steps 4 (at s.yaml:1) does not divide 10 rows",
        ),
    ],
)
def test_what_does_not_divide_is_refused_with_numbers_that_would(options, told, devices, words):
    with pytest.raises(StrategyError) as caught:
        settle(devices, told, **options)
    (problem,) = caught.value.problems
    assert problem.id == "LF-TRAIN-035"
    assert words in str(problem)
    assert problem.where.startswith("s.yaml:")


@given(total=st.integers(1, 400), micro=st.integers(1, 60), devices=st.integers(1, 8), told=st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_step_sees_exactly_the_rows_that_were_asked_for_or_none(total, micro, devices, told):
    try:
        size, accumulation = settle(devices, (MICRO,) if told else (), global_batch_size=total, batch_size=micro)
    except StrategyError:
        assert total % (micro * devices if told else devices)
    else:
        assert size * accumulation * devices == total
        assert size == micro if told else size <= micro


def test_the_check_knows_the_launcher(make, monkeypatch):
    options = {"training": {"global_batch_size": 12, "batch_size": 4}}
    found = list(check_global_batch(*make(options, ("training.global_batch_size",))))
    assert [(item.subject, item.value) for item in found if isinstance(item, Decision)] == [
        (MICRO, "4"),
        (ACCUMULATION, "3"),
    ]
    assert all("12 rows a step = 4 x 3 x 1 device" in item.reason for item in found if isinstance(item, Decision))
    monkeypatch.setenv("WORLD_SIZE", "5")
    (problem,) = check_global_batch(*make(options, ("training.global_batch_size",)))
    assert isinstance(problem, Problem)
    assert problem.id == "LF-TRAIN-035"
