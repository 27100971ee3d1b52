"""A step that broke, taken again from its record in the run's directory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from llamafarm.core.load import load
from llamafarm.core.plan import make_plan
from llamafarm.core.record import OWN
from llamafarm.core.registry import Registry
from llamafarm.core.request import Flag, Request
from llamafarm.core.resume import find_run
from llamafarm.data.prepare import prepare
from llamafarm.errors import RunDirectoryError

_PREFIX: Final = "broken-step-"
_RECORD: Final = "step.json"


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of it.

    Attributes:
        step: The optimizer step.
        why: What was seen when it broke.
        examples: Where its rows stand, for each part that went through the model.
        before: The first value that was not finite then; None if none was found.
        now: The first one now; None if all are finite.
        loss: The step's loss now, summed over its targets; None where the fine-tuner does not tell.
        loss_before: What it was then.
    """

    step: int
    why: str
    examples: list[list[str]]
    before: str | None
    now: str | None
    loss: float | str | None = None
    loss_before: float | str | None = None


def replay_step(target: str, step: int, registry: Registry) -> Replay:
    """Take a recorded step again. Writes nothing.

    Args:
        target: The run's directory, or `last`.
        step: The step.
        registry: Components.

    Raises:
        RunDirectoryError: If the run has no such record, or it cannot be read.
    """
    found = find_run(target)
    folder = found.folder / OWN / f"{_PREFIX}{step}"
    facts = _facts(folder)
    request = Request(found.strategy, (Flag("output_dir", str(found.folder), "RUN"),))
    loaded = load(request, registry)
    planned = make_plan(loaded, registry, found.point)
    curriculum = loaded.tuner_config.training.curriculum
    data = prepare(
        loaded.tuner_config.dataset,
        planned.splitter,
        notice=lambda _: None,
        difficulty=curriculum.column if curriculum else None,
    )
    run = _Listening(found.folder)
    now = planned.tuner.replay_step(planned.plan, data, run, folder)
    losses = run.replayed.get("loss"), run.replayed.get("before")
    return Replay(step, str(facts["why"]), facts["examples"], facts["first_bad"], now, *losses)


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        steps = sorted(int(name) for path in folder.parent.glob(f"{_PREFIX}*")
                       if (name := path.name.removeprefix(_PREFIX)).isdigit())  # fmt: skip
        hint = f"it has: {', '.join(map(str, steps))}" if steps else "no step of it broke"
        name = folder.name.removeprefix(_PREFIX)
        message = f"the run has no record of step {name}"
        raise RunDirectoryError.of("LF-RUN-050", message, where=str(folder.parent.parent), hint=hint) from None
    except (OSError, ValueError) as error:
        message = f"the record cannot be read: {error}"
        raise RunDirectoryError.of("LF-RUN-051", message, where=str(folder), hint="it is not whole") from None
    return facts


@dataclass(frozen=True, slots=True)
class _Listening:
    """A run of which only the losses are heard."""

    output_dir: Path
    run_id: str = "replay"
    seed: int = 0
    stop_requested: bool = False
    replayed: dict[str, Any] = field(default_factory=dict)

    def take_checkpoint_request(self) -> bool:
        """Nobody asks."""
        return False

    def emit(self, type: str, /, **fields: Any) -> None:  # noqa: A002  # the contract's word
        """Note the losses."""
        if type == "replayed":
            self.replayed.update(fields)
