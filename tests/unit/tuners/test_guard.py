from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from llamafarm.api import GuardConfig, TrainingConfig
from llamafarm.errors import NumericError
from llamafarm_tuners.pytorch.guard import Figures, Guard, Offence
from llamafarm_tuners.pytorch.guard.advice import ADVICE
from llamafarm_tuners.pytorch.guard.history import overfitting, rising_loss, underfitting
from llamafarm_tuners.pytorch.guard.statistics import robust_z, slope_t


def guard(
    said: list[dict[str, Any]] | None = None, *, scaled: bool = False, ordered: bool = False, **config: Any
) -> Guard:
    heard = said if said is not None else []
    return Guard(GuardConfig(**config), scaled=scaled, say=lambda **fields: heard.append(fields), ordered=ordered)


def figures(
    loss: float = 2.0, norm: float = 1.0, rate: float = 1e-4, labels: float = 1.0, peak: float = 1e-4
) -> Figures:
    return Figures(loss, labels, norm, rate, peak)


def logs(losses: list[float]) -> list[dict[str, Any]]:
    return [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]


def noisy_course(seed: int, steps: int) -> list[Figures]:
    """A loss that decays to a plateau with noise of a tenth and heavy tails, as small batches have it."""
    source = random.Random(seed)
    found = []
    for step in range(steps):
        level = 0.8 + 3.0 * math.exp(-step / 200)
        loss = level * math.exp(source.gauss(0, 0.1)) + (0.4 if source.random() < 0.01 else 0.0)
        found.append(figures(loss, 0.5 * math.exp(source.gauss(0, 0.4)), 1e-4 * (1 - step / steps)))
    return found


def test_no_alarm_in_ten_thousand_clean_steps():
    for seed in range(2):
        said: list[dict[str, Any]] = []
        subject, history = guard(said), []
        for step, item in enumerate(noisy_course(seed, 5000), 1):
            assert subject.check(step, item)
            if step % 10 == 0:
                history.append({"step": step, "loss": item.loss})
                subject.read(step, history[-60:] if step < 5000 else history, last=step == 5000)
        assert said == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("policy", ["stop", "recover"])
def test_what_is_not_finite_never_passes(policy, value):
    for bad in (figures(loss=value), figures(norm=abs(value))):
        with pytest.raises(Offence) as caught:
            guard(policy=policy).check(3, bad)
        assert (caught.value.step, caught.value.action) == (3, policy)
        assert "learning_rate 10 times" in str(caught.value.error())


def test_warn_leaves_the_step_out_but_not_for_ever():
    said: list[dict[str, Any]] = []
    subject = guard(said, policy="warn")
    assert [subject.check(step, figures(norm=math.nan)) for step in range(1, 26)] == [False] * 25
    with pytest.raises(Offence, match="26 steps in a row"):
        subject.check(26, figures(norm=math.nan))
    assert [item["step"] for item in said] == [1], "said once within a window"


def test_with_loss_scaling_an_overflow_is_no_news():
    subject = guard(scaled=True)
    assert all(subject.check(step, figures(norm=math.inf)) for step in range(1, 26))
    with pytest.raises(Offence, match="26 steps in a row"):
        subject.check(26, figures(norm=math.inf))


def test_a_sound_step_ends_a_row_of_bad_ones():
    for scaled, policy in ((False, "warn"), (True, "stop")):
        subject = guard(policy=policy, scaled=scaled)
        for start in (0, 30, 60):
            for step in range(start, start + 25):
                subject.check(step, figures(norm=math.inf))
            assert subject.check(start + 25, figures())


def test_with_loss_scaling_a_bad_loss_is_news_all_the_same():
    with pytest.raises(Offence, match="the loss is nan"):
        guard(scaled=True).check(1, figures(loss=math.nan, norm=math.nan))


@pytest.mark.parametrize(
    ("norm", "kinds"), [(100.0, []), (100.1, ["gradient-explosion"]), (0.0999, ["gradient-vanishing"])]
)
def test_the_range_of_gradient_norms_is_meant_exactly(norm, kinds):
    said: list[dict[str, Any]] = []
    guard(said, grad_norm_min=0.1, grad_norm_max=100.0).check(1, figures(norm=norm))
    assert [item["kind"] for item in said] == kinds


def test_only_the_last_window_of_steps_counts():
    said: list[dict[str, Any]] = []
    subject = guard(said, window=20)
    for step in range(1, 101):
        subject.check(step, figures(1.0 if step <= 60 else 4.0))
    assert [item["step"] for item in said] == [61], "a new level is news once"
    subject.check(101, figures(4.2))
    assert len(said) == 1
    assert len(subject.state_dict()["losses"]) == len(subject.state_dict()["norms"]) == 20


def test_what_moves_by_a_share_of_a_large_loss_is_no_spike():
    said: list[dict[str, Any]] = []
    subject = guard(said)
    for step in range(1, 31):
        subject.check(step, figures(10.0))
    subject.check(31, figures(10.9))
    assert said == []
    subject.check(32, figures(16.0))
    assert [item["kind"] for item in said] == ["spike"]


def test_steps_that_are_taken_again_are_warned_of_again():
    said: list[dict[str, Any]] = []
    subject = guard(said)
    for step in (40, 41, 12, 13, 62):
        subject.check(step, figures(loss=0.0))
    assert [item["step"] for item in said] == [40, 12, 62]


@pytest.mark.parametrize("anomalies", ["stop", "recover"])
def test_a_learning_rate_is_the_users_own(anomalies):
    said: list[dict[str, Any]] = []
    assert guard(said, anomalies=anomalies).check(1, figures(rate=1e-7, peak=1e-7))
    assert [item["kind"] for item in said] == ["low-learning-rate"]


def test_off_looks_at_nothing():
    said: list[dict[str, Any]] = []
    assert guard(said, policy="off").check(1, figures(loss=math.nan))
    assert said == []


def test_each_oddity_has_its_name():
    cases = {
        "zero-loss": figures(loss=0.0),
        "no-labels": figures(loss=0.0, labels=0.0),
        "spike": figures(loss=50.0),
        "gradient-explosion": figures(norm=2e4),
        "low-learning-rate": figures(rate=1e-7, peak=2e-7),
    }
    for kind, item in cases.items():
        said: list[dict[str, Any]] = []
        subject = guard(said)
        for step in range(1, 31):
            subject.check(step, figures(2.0 + step % 3 / 10))
        subject.check(31, item)
        assert [entry["kind"] for entry in said] == [kind]
        assert ADVICE[kind].remedies[0] in said[0]["message"]
    with pytest.raises(Offence, match=r"below 0\.1"):
        guard(anomalies="recover", grad_norm_min=0.1).check(1, figures(norm=0.05))


def test_a_low_learning_rate_at_the_ends_of_its_schedule_is_planned():
    said: list[dict[str, Any]] = []
    subject = guard(said)
    for rate in (0.0, 1e-8, 9e-7, 1e-4, 9e-7, 0.0):
        subject.check(1, figures(rate=rate, peak=1e-4))
    assert said == []


def test_a_resumed_guard_judges_as_one_that_was_never_stopped():
    one, other = guard(), guard()
    course = noisy_course(3, 60)
    for step, item in enumerate(course, 1):
        one.check(step, item)
    other.load_state_dict(one.state_dict())
    assert other.state_dict() == one.state_dict()
    for subject in (one, other):
        with pytest.raises(Offence):
            Guard.check(subject, 61, figures(loss=math.nan))


def test_a_rising_loss_is_told_from_noise():
    assert rising_loss(logs([1.0 + 0.1 * step for step in range(10)])) is not None
    assert "Loss increasing recently" in str(rising_loss(logs([1.0 + 0.1 * step for step in range(6)])))
    assert rising_loss(logs([1.0 + 0.1 * step for step in range(5)])) is None, "more than 5 entries are needed"
    assert rising_loss(logs([1.0, 1.3, 0.9, 1.2, 1.0, 1.1, 0.8, 1.3, 1.0, 1.2])) is None
    assert rising_loss(logs([2.0 - 0.1 * step for step in range(10)])) is None
    mixed = [
        entry
        for pair in zip(logs([2.0] * 10), [{"eval_loss": float(i)} for i in range(10)], strict=True)
        for entry in pair
    ]
    assert rising_loss(mixed) is None, "entries of evaluations do not count"


def test_over_and_underfitting_are_read_from_the_log():
    def course(held_out: list[float], train: list[float]) -> list[dict[str, Any]]:
        history: list[dict[str, Any]] = []
        for loss, eval_loss in zip(train, held_out, strict=True):
            history += [{"loss": loss}, {"eval_loss": eval_loss}]
        return history

    falling = [3.0, 2.0, 1.5, 1.2, 1.0]
    assert "overfitting" in str(overfitting(course([2.5, 2.0, 2.1, 2.2, 2.3], falling)))
    assert overfitting(course([2.5, 2.0, 2.1, 2.05, 2.3], falling)) is None
    assert overfitting(course([2.5, 2.0, 2.1, 2.2, 2.3], falling[::-1])) is None, "the training loss rose too"
    assert "underfitting" in str(underfitting(logs([2.0] * 40)))
    assert underfitting(logs([2.0] * 20 + [1.0] * 20)) is None
    assert underfitting(logs([2.0] * 39)) is None


def test_a_held_out_loss_that_is_not_finite_ends_the_run():
    guard().check_evaluation(1.0)
    with pytest.raises(NumericError, match="LF-NUMERIC-004"):
        guard(policy="warn").check_evaluation(math.nan)


def test_statistics():
    assert robust_z(10.0, [1.0] * 19, 1.0) == 0.0, "too few to judge by"
    assert robust_z(10.0, [1.0] * 20, 1.0) == 9.0
    window = [float(item) for item in range(21)]  # median 10, median deviation 5
    assert robust_z(10 + 5 * 1.4826, window, 0.1) == pytest.approx(1.0)
    assert slope_t([1.0, 1.0, 1.0]) == 0.0
    assert slope_t([1.0, 2.0, 3.0]) == math.inf
    # y = 1, 3, 2, 4: slope 0.8, residual sum 1.8, se = sqrt(1.8 / 2 / 5)
    assert slope_t([1.0, 3.0, 2.0, 4.0]) == pytest.approx(0.8 / math.sqrt(0.18))


def test_the_table_of_advice_is_the_documented_one(root: Path):
    text = (root / "docs/stability.md").read_text()
    for kind, row in ADVICE.items():
        assert f"| `{kind}` | {row.symptom} | {'; '.join(row.remedies)} |" in text


def test_auto_is_a_word_for_the_field_that_finds_the_size():
    auto = TrainingConfig.model_validate({"batch_size": "auto"})
    assert (auto.auto_find_batch_size, auto.batch_size) == (True, 4)
    assert TrainingConfig().auto_find_batch_size is False
