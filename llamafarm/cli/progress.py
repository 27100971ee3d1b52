"""Show a run's events as they come: one tidy line on a terminal, `key=value` lines anywhere else."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

from llamafarm.api.values import Event
from llamafarm.cli.figures import number
from llamafarm.cli.session import Session


class Listener(Protocol):
    """Something that is told each event of a run."""

    def __call__(self, event: Event, /) -> None: ...


@contextmanager
def show_progress(session: Session, *, quiet: bool = False) -> Iterator[Listener]:
    """A listener that suits where stderr goes."""
    if quiet:
        yield Warnings(session)
    elif session.live(sys.stderr):
        from llamafarm.cli.live import LiveProgress

        with LiveProgress(session) as live:
            yield live
    else:
        yield PlainProgress(session)


def parameter_lines(fields: Mapping[str, Any]) -> list[str]:
    """How many parameters are trained: the three lines that people look for first."""
    trainable, total = int(fields["trainable_parameters"]), int(fields["total_parameters"])
    percent = 100 * trainable / total if total else 0.0
    return [f"Trainable params: {trainable:,}", f"All params: {total:,}", f"Trainable %: {percent:.2f}"]


class Warnings:
    """Shows warnings alone."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self, event: Event, /) -> None:
        if event.type == "warning":
            self.session.warning(str(event.fields["message"]))


class PlainProgress:
    """One line an event: `ts=… step=420/705 loss=0.8412 …`; written at once, fit for grep and for log collectors."""

    NAMES: Mapping[str, str] = {
        "learning_rate": "lr",
        "tokens_per_second": "tok_s",
        "remaining_s": "eta_s",
        "name": "phase",
        "path": "checkpoint",
    }
    LEFT_OUT = frozenset({"total_steps", "elapsed_s"})

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self, event: Event, /) -> None:
        # the summary shows the first, notices said what matters of the others
        if event.type in {"result", "ledger", "paths", "precision", "offload"}:
            return
        if event.type == "model":
            for line in parameter_lines(event.fields):
                self.session.say(line)
        self.session.say(self.line(event))

    def line(self, event: Event) -> str:
        """The event in one line."""
        words = [f"ts={datetime.now(UTC).isoformat(timespec='seconds')}"]
        if event.type not in {"log", "eval", "phase", "checkpoint"}:
            words.append(f"event={event.type}")
        for key, value in event.fields.items():
            if value is None or key in self.LEFT_OUT:
                continue
            if key == "step" and event.fields.get("total_steps"):
                value = f"{value}/{event.fields['total_steps']}"  # noqa: PLW2901  # one word for both
            if key == "peak_memory_bytes":
                key, value = "mem_gib", value / 1024**3  # noqa: PLW2901  # the unit that people compare
            words.append(f"{self.NAMES.get(key, key)}={_word(value)}")
        return " ".join(words)


def _word(value: Any) -> str:
    """A value without spaces, or quoted."""
    if isinstance(value, float):
        return number(value)
    if isinstance(value, bool | int):
        return str(value).lower()
    text = str(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    plain = text and not set(text) & set(" \"'=\n\t")
    return text if plain else json.dumps(text, ensure_ascii=False)
