from __future__ import annotations

import math

import pytest

from llamafarm.errors import ExitCode, NumericError
from llamafarm_tuners.pytorch.guard import FiniteGuard


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("loss", "norm", "id_"), [(None, 1.0, "LF-NUMERIC-001"), (1.0, None, "LF-NUMERIC-002")])
def test_a_value_that_is_not_finite_stops_the_run_and_names_the_step(bad, loss, norm, id_):
    with pytest.raises(NumericError, match=rf"step 7: .*{id_}") as caught:
        FiniteGuard(scaled=False).check(7, bad if loss is None else loss, bad if norm is None else norm)
    assert caught.value.exit_code == ExitCode.NUMERIC


def test_finite_values_pass():
    FiniteGuard(scaled=False).check(1, 3.0, 0.0)


def test_overflowing_gradients_are_expected_with_loss_scaling_but_not_for_ever():
    guard = FiniteGuard(scaled=True)
    for step in range(25):
        guard.check(step, 1.0, math.inf)
    guard.check(25, 1.0, 1.0)
    for step in range(25):
        guard.check(step, 1.0, math.inf)
    with pytest.raises(NumericError, match="26 times in a row"):
        guard.check(99, 1.0, math.inf)


def test_an_evaluation_has_to_be_finite_too():
    with pytest.raises(NumericError, match="LF-NUMERIC-004"):
        FiniteGuard(scaled=False).check_evaluation(math.nan)
