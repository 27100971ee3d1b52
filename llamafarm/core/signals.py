"""What signals ask of a run: to stop after its step, to stop now, to write a checkpoint and go on."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from llamafarm.errors import ExitCode, Stopped

_STOPPING: Final = ("SIGINT", "SIGTERM", "SIGHUP")
_CHECKPOINT: Final = "SIGUSR1"
_UNHURRIED: Final = frozenset({"training", "saving"})
"""Phases that come to a good end by themselves: after the step, or with the result written."""
_SHORTLY: Final = 0.01
"""Seconds until a signal comes again whose exception was dropped."""


class Wishes:
    """Keeps what was asked.

    An exception raised at an arbitrary instant may land in a callback of a library, which drops it; so while a model
    trains, the first signal only sets a mark. Elsewhere, and the second time, it stops the run at once; that tears
    nothing, because everything is written beside its place first.

    Attributes:
        stop: The signal that asked to stop; None: none did.
        thrown: Whether it was asked for so that the run ends at once; a library may raise something else in its place.
        checkpoint: Whether a checkpoint was asked for.
    """

    def __init__(self, phase: Callable[[], str]) -> None:
        self._phase = phase
        self.stop: signal.Signals | None = None
        self.thrown = False
        self.checkpoint = False
        self._report = sys.unraisablehook
        self._again: threading.Timer | None = None

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen to signals; they are as before at the end. Only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {}
        for name in (*_STOPPING, _CHECKPOINT):
            number = getattr(signal, name, None)  # Windows has few of them
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                before[number] = signal.signal(number, self._ask if name == _CHECKPOINT else self._stop)
        self._report, sys.unraisablehook = sys.unraisablehook, self._retrieve
        try:
            yield
        finally:
            sys.unraisablehook = self._report
            if self._again is not None:
                self._again.cancel()
                self._again.join()
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def exit_code(self) -> ExitCode:
        """130 for Ctrl-C, 75 for what a scheduler sends."""
        return ExitCode.INTERRUPTED if self.stop in (None, signal.SIGINT) else ExitCode.REQUEUE

    @property
    def reason(self) -> str:
        """What stopped it, in a word."""
        return "Ctrl-C" if self.stop in (None, signal.SIGINT) else str(self.stop and self.stop.name)

    def ending(self, error: BaseException) -> tuple[ExitCode, str]:
        """Exit code and reason of a run that an error stopped: its own if it has one, else the signal's."""
        reason = f"stopped by {self.reason}"
        return (error.exit_code, error.message or reason) if isinstance(error, Stopped) else (self.exit_code, reason)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        first = self.stop is None
        self.stop = signal.Signals(number)
        if not (first and self._phase() in _UNHURRIED):
            self.thrown = True
            raise Stopped(self.exit_code, "")

    def _retrieve(self, dropped: sys.UnraisableHookArgs) -> None:
        """A callback that Python lets nothing out of was interrupted: the signal comes again an instant later."""
        if self.stop is None or not isinstance(dropped.exc_value, Stopped):
            self._report(dropped)
            return
        main = threading.main_thread().ident
        assert main is not None
        self._again = threading.Timer(_SHORTLY, signal.pthread_kill, (main, self.stop))
        self._again.daemon = True
        self._again.start()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.checkpoint = True
