"""A run for tests of one component alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamafarm.api import Event


@dataclass
class RecordingRun:
    """Implements `RunContext`; keeps what it is told in `events`."""

    output_dir: Path
    run_id: str = "test"
    seed: int = 0
    stop_requested: bool = False
    checkpoint_requested: bool = False
    events: list[Event] = field(default_factory=list)

    def take_checkpoint_request(self) -> bool:
        """Whether a test asked for a checkpoint; once."""
        asked, self.checkpoint_requested = self.checkpoint_requested, False
        return asked

    def emit(self, type: str, /, **fields: Any) -> None:  # noqa: A002  # the event's own word
        """Keep the event."""
        self.events.append(Event(type, fields))
