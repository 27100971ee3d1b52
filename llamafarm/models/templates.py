"""Chat templates are programs: they run in a sandbox (transformers'), and here under limits of time, memory and output.

A template that was not seen before is tried once in a process of its own, which the system stops at its limits; that
catches those that are always too costly. What is costly for some rows only is stopped by a timer and by a cap on the
text, both so cheap that every rendering has them.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from llamafarm.errors import SecurityError

CPU_SECONDS = 10
"""What rendering one conversation may take. Real templates take milliseconds."""

_AGAIN = 0.5
_LONGEST_SOURCE = 1_000_000
_OUTPUT_BASE, _OUTPUT_FACTOR = 1_000_000, 16
_TRIAL = Path(__file__).with_name("_template_trial.py")
_TRIAL_SECONDS = 20
_HINT = "take another model, or give its tokenizer another chat template"
_MARK = re.compile(r"{%-?\+?\s*generation\s*[-+]?%}")
_tried: set[str] = set()


def has_marks(template: str) -> bool:
    """Whether a chat template says by `{% generation %}` what the assistant writes."""
    return bool(_MARK.search(template))


class TooCostly(Exception):  # noqa: N818  # becomes a SecurityError where it is known what was rendered
    """Rendering took too long, or the memory did not suffice; its text says which, to go after `a chat template`."""


def check_templates(templates: str | Mapping[str, str] | None, given: str) -> None:
    """Try chat templates under limits, each once.

    Args:
        templates: Of a tokenizer: one, several by name, or none.
        given: Whose they are, for the message.

    Raises:
        SecurityError: If one exceeds a limit.
    """
    found = templates.values() if isinstance(templates, Mapping) else [templates or ""]
    for template in found:
        if template and template not in _tried:
            if reason := _try(template):
                raise too_costly(given, reason)
            _tried.add(template)


@contextmanager
def limited(seconds: float = CPU_SECONDS) -> Iterator[None]:
    """Stop what takes longer, in CPU time of this process; where there are no timers, or none is free, nothing stops.

    Raises:
        TooCostly: In the body, when its time is over; or if there was not enough memory for it.
    """
    try:
        with _timed(seconds):
            yield
    except MemoryError:
        raise TooCostly("needs more memory than there is") from None


@contextmanager
def _timed(seconds: float) -> Iterator[None]:
    here = threading.current_thread() is threading.main_thread()
    if not here or not hasattr(signal, "setitimer") or signal.getsignal(signal.SIGVTALRM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # what a signal handler is given
        raise TooCostly(f"takes more than {seconds:g} seconds")

    signal.signal(signal.SIGVTALRM, stop)
    # again, where Python was in a callback that lets no error out
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)


def check_output(text: str, asked: int, given: str = "the chat template") -> None:
    """Refuse a text that is out of all proportion.

    Args:
        text: What was rendered.
        asked: Characters of the conversation and of the template.
        given: Whose template it is.

    Raises:
        SecurityError: If it is too long.
    """
    if len(text) > _OUTPUT_BASE and len(text) > _OUTPUT_BASE + _OUTPUT_FACTOR * asked:
        raise too_costly(given, f"wrote {len(text):,} characters for a conversation of {asked:,}")


def too_costly(given: str, reason: str) -> SecurityError:
    """What to tell of a template that exceeds a limit."""
    return SecurityError.of("LF-SECURITY-009", f"{given}: a chat template {reason}", hint=_HINT)


def _try(template: str) -> str:
    """What is wrong with a template; empty if nothing is."""
    if len(template) > _LONGEST_SOURCE:
        return f"has {len(template):,} characters"
    command = [sys.executable, "-I", str(_TRIAL)]
    arguments: dict[str, Any] = {"input": json.dumps(template), "text": True, "encoding": "utf-8", "env": {}}
    try:
        ended = subprocess.run(  # noqa: S603  # our own interpreter and script, no shell, no environment
            command, capture_output=True, timeout=_TRIAL_SECONDS, check=False, **arguments
        )
    except subprocess.TimeoutExpired:
        return f"takes more than {_TRIAL_SECONDS} seconds"
    except OSError:
        return ""  # no process can be started here; the timer and the cap remain
    reasons = {3: "needs too much memory", 4: "writes too much", -signal.SIGXCPU: "takes too long"}
    return reasons.get(ended.returncode, "takes too long" if ended.returncode == -signal.SIGKILL else "")
