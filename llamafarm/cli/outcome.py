"""Show what a run would do, and what came of it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

from llamafarm.api.values import Event
from llamafarm.cli.estimate import one_line
from llamafarm.cli.figures import duration, gib, number, share
from llamafarm.cli.progress import Listener
from llamafarm.cli.session import Session
from llamafarm.cli.tables import plain_table, show_table

if TYPE_CHECKING:
    from llamafarm.core.estimate import Estimate
    from llamafarm.core.plan import Planned
    from llamafarm.core.run import Outcome


@dataclass(slots=True)
class Story:
    """What the events of a run told, for the summary; passes each event on."""

    listener: Listener
    losses: list[float] = field(default_factory=list)
    exact_match: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    started: float = field(default_factory=time.monotonic)

    def __call__(self, event: Event, /) -> None:
        if event.type == "log" and event.fields.get("loss") is not None:
            self.losses = [*self.losses[:1], event.fields["loss"]]
        elif event.type == "exact_match":
            self.exact_match[event.fields["model"]] = event.fields["exact_match"]
            self.samples = event.fields["samples"]
        self.listener(event)


def show_plan(session: Session, planned: Planned, expected: Estimate | None, *, as_json: bool) -> None:
    """Write the plan to stdout, with what it is expected to cost where that is known."""
    if as_json:
        session.result_json({**_plan(planned), "estimate": expected.as_json() if expected else None})
        return
    session.result(_headline(planned))
    if expected is not None:
        session.result(f"estimate: {one_line(expected)}")
        for note in expected.costs.notes:
            session.notice(note)
    show_table(session, ["SETTING", "VALUE", "WHY"], _decisions(planned))
    session.say("dry run: nothing was written")


def say_plan(session: Session, planned: Planned) -> None:
    """Write the plan to stderr, before it is carried out."""
    session.say(_headline(planned))
    for line in plain_table(_decisions(planned)):
        session.say(f"  {line}")


def show_outcome(
    session: Session, outcome: Outcome, story: Story, exports: Sequence[str] = (), *, quiet: bool, as_json: bool
) -> None:
    """Write the end of a run to stdout: figures, where the result is, and what to do with it."""
    if as_json:
        session.result_json({**_outcome(outcome, story), "exports": list(exports)})
        return
    if quiet:
        session.result(str(outcome.result.model_dir))
        return
    session.result(f"{typer.style('✓', fg='green')} {outcome.run_id}: done in {duration(_elapsed(story))}")
    for line in plain_table([*_summary(outcome, story), *(["exported", folder] for folder in exports)]):
        session.result(f"  {line}")


def _headline(planned: Planned) -> str:
    plan = planned.plan
    methods = "+".join(method.name for method in plan.methods)
    how = " with ".join(filter(None, [methods, planned.tuner.name]))
    return f"{plan.name}: {how} on {plan.device.type}, to {plan.output_dir}"


def _decisions(planned: Planned) -> list[list[str]]:
    return [[item.subject, item.value, item.reason] for item in planned.plan.decisions]


def _plan(planned: Planned) -> dict[str, Any]:
    plan = planned.plan
    decisions = [{"subject": item.subject, "value": item.value, "reason": item.reason} for item in plan.decisions]
    return {
        "name": plan.name,
        "fine_tuner": planned.tuner.name,
        "methods": [method.name for method in plan.methods],
        "data_splitter": planned.splitter.name if planned.splitter else None,
        "device": {"type": plan.device.type, "name": plan.device.name, "count": plan.device.count},
        "output_dir": str(plan.output_dir),
        "decisions": decisions,
        "given": dict(plan.given),
    }


def _outcome(outcome: Outcome, story: Story) -> dict[str, Any]:
    result = outcome.result
    return {
        "run_id": outcome.run_id,
        "output_dir": str(outcome.output_dir),
        "model_dir": str(result.model_dir),
        "best_step": result.best_step,
        "trainable_parameters": result.trainable_parameters,
        "total_parameters": result.total_parameters,
        "metrics": dict(result.metrics),
        "exact_match": dict(story.exact_match),
        "elapsed_s": round(_elapsed(story), 3),
    }


def _summary(outcome: Outcome, story: Story) -> list[list[str]]:
    metrics = outcome.result.metrics
    rows = []
    if story.losses:
        rows.append(["loss", " → ".join(number(loss) for loss in story.losses)])
    if isinstance(metrics.get("eval_loss"), float):
        best = f" (best checkpoint: step {outcome.result.best_step})" if outcome.result.best_step is not None else ""
        rows.append(["eval loss", f"{number(float(metrics['eval_loss'] or 0))}{best}"])
    if story.exact_match:
        measured = " → ".join(share(value) for value in story.exact_match.values())
        rows.append(["exact match", f"{measured} of {story.samples} held-out rows ({' → '.join(story.exact_match)})"])
    rows += _memory(outcome)
    rows.append(["saved", str(outcome.result.model_dir)])
    model = shlex.quote(str(outcome.result.model_dir))
    rows.append(["next", f'llamafarm generate --model {model} --prompt "…"'])
    if (outcome.output_dir / "runs").is_dir():
        rows.append(["", f"tensorboard --logdir {shlex.quote(str(outcome.output_dir / 'runs'))}"])
    return rows


def _memory(outcome: Outcome) -> list[list[str]]:
    """Measured beside estimated, where both are known."""
    measured = outcome.result.metrics.get("peak_memory_bytes")
    if outcome.estimate is None or not isinstance(measured, int):
        return []
    return [["memory", f"{gib(measured)} at its peak (estimated: {gib(outcome.estimate.peak)})"]]


def _elapsed(story: Story) -> float:
    return time.monotonic() - story.started
