"""A sample of `make combinations`: trainings of many kinds end the same wherever they are interrupted, or say not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from combinations import FACTORS, SAMPLE, STEPS, Forks, Outcome, Trial, cases, prepared, uncovered


def test_any_three_settings_meet_in_all_their_combinations() -> None:
    every = cases()
    assert len(every) == 24
    assert uncovered(every, 2) == uncovered(every, 3) == []
    assert uncovered(every[:12], 3), "half of them would not do"
    assert uncovered([every[number] for number in SAMPLE], 2, 8) == [], "the sample has all pairs of the first eight"
    assert len(uncovered([], 2, 8)) == 28 * 4
    assert next(product(*FACTORS.values())) == tuple(every[0].values())


def test_another_end_is_a_fault_unless_it_is_said() -> None:
    assert Outcome(1, same=True, said=False).verdict == ""
    assert Outcome(1, same=False, said=True).verdict == ""
    assert Outcome(1, same=True, said=False, wrong="exit code 1").verdict == "checkpoint-1: exit code 1"
    assert Outcome(1, same=False, said=False).verdict == "checkpoint-1: another end, and not a word of it"


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    folder = tmp_path_factory.mktemp("combinations")
    prepared(folder)
    with Forks(folder) as forks:
        yield Trial(forks, folder)


@pytest.mark.e2e
@pytest.mark.parametrize("number", SAMPLE)
def test_a_run_that_goes_on_from_any_checkpoint_ends_as_one_in_one_go(trial: Trial, number: int) -> None:
    outcomes = list(trial.outcomes(number, cases()[number]))
    assert [outcome.step for outcome in outcomes] == list(range(1, STEPS + 1))
    assert [outcome.verdict for outcome in outcomes] == [""] * STEPS
    assert all(outcome.same for outcome in outcomes), "all of these are exact on a CPU"
