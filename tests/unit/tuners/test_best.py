from __future__ import annotations

import pytest

from llamafarm.api import TrainingConfig
from llamafarm_tuners.pytorch.best import BestSoFar, without_effect
from llamafarm_tuners.pytorch.schedule import Rhythm


def follow(training: TrainingConfig, values: list[float], metric: str = "eval_loss") -> BestSoFar:
    best = BestSoFar(training)
    for step, value in enumerate(values, 1):
        best.update(step, {metric: value})
        if best.exhausted:
            break
    return best


def test_the_lowest_loss_is_best():
    best = follow(TrainingConfig(), [3.0, 1.0, 2.0])
    assert (best.step, best.value, best.metrics) == (2, 1.0, {"eval_loss": 1.0})


def test_equal_is_not_better():
    assert follow(TrainingConfig(), [1.0, 1.0]).step == 1


@pytest.mark.parametrize(
    ("metric", "greater", "step"),
    [
        ("loss", None, 2),
        ("eval_loss", True, 1),
        ("eval_token_accuracy", None, 1),
        ("token_accuracy", False, 2),
        ("perplexity", None, 2),
    ],
)
def test_the_direction_follows_the_name_unless_given(metric, greater, step):
    training = TrainingConfig(metric_for_best_model=metric, greater_is_better=greater, compute_metrics=True)
    full = metric if metric.startswith("eval_") else f"eval_{metric}"
    assert follow(training, [3.0, 1.0, 2.0], full).step == step


def test_a_flat_metric_stops_after_the_patience():
    training = TrainingConfig(early_stopping=True, early_stopping_patience=3)
    best = BestSoFar(training)
    for step in range(1, 10):
        best.update(step, {"eval_loss": 1.0})
        if best.exhausted:
            break
    assert step == 4
    assert "has not improved for 3 evaluations (best: 1 at step 1): stopped at step 4 of 9" in best.farewell(4, 9)


def test_small_gains_do_not_count_against_the_threshold_but_are_still_the_best():
    training = TrainingConfig(early_stopping=True, early_stopping_patience=2, early_stopping_threshold=0.1)
    best = follow(training, [1.0, 0.95, 0.94])
    assert best.exhausted
    assert best.step == 3


def test_slow_but_steady_gains_above_the_threshold_in_sum_reset_the_patience():
    training = TrainingConfig(early_stopping=True, early_stopping_patience=2, early_stopping_threshold=0.1)
    assert not follow(training, [1.0, 0.95, 0.85, 0.8]).exhausted


def test_it_never_stops_unless_asked():
    assert not follow(TrainingConfig(early_stopping_patience=1), [1.0] * 10).exhausted


@pytest.mark.parametrize(("every", "steps", "said"), [(0, 10, 2), (10, 10, 2), (5, 10, 1), (3, 10, 1), (3, 13, 0)])
def test_what_too_few_evaluations_leave_without_effect_is_said(every, steps, said):
    training = TrainingConfig(early_stopping=True, early_stopping_patience=3, load_best_model_at_end=True)
    evaluations = Rhythm(every).before(steps)
    assert evaluations == sum(Rhythm(every).due(step) for step in range(1, steps))
    assert len(list(without_effect(training, evaluations))) == said
    # what is not said can happen: the first evaluation is the best, and all others follow
    assert follow(training, [1.0 + step for step in range(evaluations)]).exhausted == (said == 0)
    assert list(without_effect(TrainingConfig(), evaluations)) == []
