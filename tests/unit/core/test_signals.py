from __future__ import annotations

import signal
import time
import weakref

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


class Thing:
    pass


def test_a_signal_whose_exception_a_callback_drops_comes_again(capfd):
    def strike(_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    with Wishes(lambda: "loading model").heard():
        things = [Thing()]
        kept = weakref.ref(things[0], strike)
        things.clear()  # what the callback raises is dropped
        with pytest.raises(Stopped):
            time.sleep(10)
    assert kept() is None
    assert capfd.readouterr().err == ""


def test_what_else_a_callback_drops_is_reported_as_ever(monkeypatch):
    reported = []
    monkeypatch.setattr("sys.unraisablehook", lambda dropped: reported.append(dropped.exc_type))
    with Wishes(lambda: "training").heard():
        thing = Thing()
        kept = weakref.ref(thing, lambda _: 1 / 0)
        del thing
    assert kept() is None
    assert reported == [ZeroDivisionError]


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
