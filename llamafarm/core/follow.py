"""Take part in a run as one of several processes that is not the first. No torch."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamafarm.core.load import Loaded
from llamafarm.core.plan import Planned
from llamafarm.core.signals import Wishes
from llamafarm.data.prepare import prepare
from llamafarm.errors import ExitCode, Stopped


def follow(loaded: Loaded, planned: Planned) -> None:
    """Take part in a run whose folder, events and result are the first process's.

    Raises:
        LlamaFarmError: As in that process.
        Stopped: If somebody asked for it.
    """
    config = loaded.tuner_config
    curriculum = config.training.curriculum
    follower = Follower(planned.plan.output_dir, config.training.seed)
    with follower.wishes.heard():
        try:
            data = prepare(
                config.dataset,
                planned.splitter,
                notice=lambda _: None,
                difficulty=curriculum.column if curriculum else None,
            )
            follower.phase = "training"
            planned.tuner.fit(planned.plan, data, follower)
        except KeyboardInterrupt as error:
            raise Stopped(*_ending(follower, error)) from error


def _ending(follower: Follower, error: BaseException) -> tuple[ExitCode, str]:
    """Exit code and last words: none if somebody asked for it, for the first process has them."""
    code, reason = follower.wishes.ending(error)
    told = isinstance(error, Stopped) and error.message
    command = f"llamafarm train --resume {shlex.quote(str(follower.output_dir))}"
    return code, f"{reason}; what was trained is kept\ngo on with: {command}" if told else ""


@dataclass
class Follower:
    """The run as processes other than the first see it: a `RunContext` that writes and says nothing."""

    output_dir: Path
    seed: int
    run_id: str = ""
    phase: str = ""
    wishes: Wishes = field(init=False)

    def __post_init__(self) -> None:
        self.wishes = Wishes(lambda: self.phase)

    @property
    def stop_requested(self) -> bool:
        """Somebody asked this process to stop."""
        return self.wishes.stop is not None

    def take_checkpoint_request(self) -> bool:
        """The first process is asked."""
        return False

    def emit(self, type: str, /, **fields: Any) -> None:  # noqa: A002  # the contract's word
        """The first process says it."""
