from __future__ import annotations

import math
from random import Random

import pytest

from llamafarm.evaluation.intervals import Sample


def coins(share: float, rows: int, seed: int = 1) -> Sample:
    generator = Random(seed)
    return Sample([float(generator.random() < share) for _ in range(rows)], [1.0] * rows)


def test_the_mean_is_weighted_by_tokens_not_by_rows():
    assert Sample([2.0, 30.0], [1.0, 99.0]).figure().value == 0.32


def test_perplexity_is_e_to_the_mean():
    assert Sample([2.0, 4.0], [1.0, 2.0], exponential=True).figure().value == pytest.approx(math.exp(2))


def test_equal_results_have_equal_intervals():
    assert coins(0.3, 50).figure() == coins(0.3, 50).figure()


def test_the_interval_has_the_width_that_theory_says():
    figure = coins(0.5, 400).figure()
    # 1.96 standard errors of a share near one half of 400: 0.049 on either side; 1,000 draws are within a fifth of it
    assert (figure.high - figure.low) / 2 == pytest.approx(0.049, rel=0.2)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(100):
        figure = coins(0.4, 60, seed).figure()
        covered += figure.low <= 0.4 <= figure.high
    assert (
        88 <= covered <= 99
    )  # 95 expected; binomial deviation 2.2, and the bootstrap of small samples is a bit narrow


def test_rows_compared_one_by_one_tell_more_than_two_intervals():
    hard = Random(3)
    base = [hard.gauss(5, 2) for _ in range(80)]
    better = [value - 0.1 + hard.gauss(0, 0.05) for value in base]
    one, other = Sample(better, [1.0] * 80), Sample(base, [1.0] * 80)
    difference = one.minus(other)
    assert difference.high < 0
    assert one.figure().high > other.figure().low


def test_different_rows_cannot_be_compared():
    with pytest.raises(ValueError, match="3 rows cannot be compared with 2"):
        coins(0.5, 3).minus(coins(0.5, 2))


def test_one_row_has_no_interval():
    figure = Sample([0.5], [1.0]).figure()
    assert (figure.value, figure.low, figure.high) == (0.5, None, None)
