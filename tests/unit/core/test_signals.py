from __future__ import annotations

import signal

import pytest

from llamafarm.core.signals import Wishes
from llamafarm.errors import ExitCode, Stopped


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, ExitCode.REQUEUE), (signal.SIGHUP, ExitCode.REQUEUE), (signal.SIGINT, ExitCode.INTERRUPTED)],
)
@pytest.mark.parametrize("phase", ["training", "saving"])
def test_the_first_signal_is_a_wish_and_the_second_stops(number, code, phase):
    wishes = Wishes(lambda: phase)
    with wishes.heard():
        signal.raise_signal(number)
        assert wishes.stop == number
        with pytest.raises(Stopped) as stopped:
            signal.raise_signal(number)
    assert stopped.value.exit_code == wishes.exit_code == code


def test_where_nothing_is_lost_the_first_signal_stops():
    with Wishes(lambda: "loading model").heard(), pytest.raises(Stopped):
        signal.raise_signal(signal.SIGTERM)


def test_asking_for_a_checkpoint_stops_nothing():
    wishes = Wishes(lambda: "loading model")
    with wishes.heard():
        signal.raise_signal(signal.SIGUSR1)
    assert wishes.checkpoint
    assert wishes.stop is None


def test_handlers_are_put_back_and_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        wishes = Wishes(lambda: "loading model")
        with wishes.heard():
            signal.raise_signal(signal.SIGHUP)
        assert wishes.stop is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
