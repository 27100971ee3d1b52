"""Go back to the last good state, leave out the rows that broke it, and change something, a few times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from llamafarm.api import GuardConfig, RunContext
from llamafarm_tuners.pytorch._remedies import LADDER, Patient, apply_again, next_remedy
from llamafarm_tuners.pytorch._state import Engine, TrainingState, restore, snapshot
from llamafarm_tuners.pytorch._tree import size
from llamafarm_tuners.pytorch.guard.watch import Offence

_MINE = "recovery"


class Recovery:
    """The state to go back to, and what was done so far; the latter is part of the training state.

    States are kept in main memory: the trained weights and the optimizer's state, one copy. One is taken every
    `guard.snapshot_steps` steps and with every checkpoint, so that a run that is resumed from one goes back to the same
    step as a run that was never stopped.

    Attributes:
        skipped: Steps whose rows are left out.
        remedies: What was changed, in order.
    """

    def __init__(self, config: GuardConfig, run: RunContext, patient: Callable[[], Patient]) -> None:
        self.skipped: set[int] = set()
        self.remedies: list[str] = []
        self._config, self._run, self._patient = config, run, patient
        self._kept: TrainingState | None = None

    @property
    def active(self) -> bool:
        """Whether states are kept at all."""
        return "recover" in (self._config.policy, self._config.anomalies) and self._config.policy != "off"

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know."""
        return {"skipped": sorted(self.skipped), "remedies": list(self.remedies)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.skipped, self.remedies = set(state["skipped"]), list(state["remedies"])

    def resume(self, state: TrainingState) -> None:
        """Bring the model where the remedies of a state had brought it, before the state is put back."""
        taken = state.others.get(_MINE, {}).get("remedies", [])
        apply_again(taken, self._patient())

    def keep(self, engine: Engine, step: int, *, first: bool = False, checkpoint: bool = False) -> None:
        """Keep the state after `step`, if it is time and everything in it is finite. All processes call it."""
        due = first or checkpoint or step % self._config.snapshot_steps == 0
        if not (self.active and due):
            return
        state = snapshot(engine, step, host=True)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in state.weights.values()):
            return
        if self._kept is None:
            mib = (size(dict(state.weights)) + size(state.optimizer)) / 2**20
            more = " (the optimizer's state comes on top after the first step)" if step == 0 else ""
            message = (
                f"guard: a state of {mib:,.1f} MiB is kept in main memory every {self._config.snapshot_steps} steps"
            )
            self._run.emit("notice", message=message + more)
        self._kept = state

    def back(self, engine: Engine, offence: Offence) -> int | None:
        """Go back, and change something; the step whose state was put back, or None if the run has to end."""
        if self._kept is None or len(self.remedies) >= self._config.max_recoveries:
            return None
        done = {"skipped": sorted({*self.skipped, offence.step}), "remedies": list(self.remedies)}
        restore(engine, self._kept)
        self.load_state_dict(done)
        name = next_remedy(self.remedies, self._patient())
        LADDER[name].apply(self._patient())
        self.remedies.append(name)
        step = self._kept.step
        self._kept = None
        self._keep_changed(engine, step)
        count = f"{len(self.remedies)} of {self._config.max_recoveries}"
        self._run.emit(
            "recovery",
            step=offence.step,
            back_to=step,
            why=offence.what,
            remedy=name,
            learning_rate=float(engine.scheduler.get_last_lr()[0]),  # type: ignore[attr-defined]  # every schedule has it
        )
        message = f"step {offence.step}: {offence.what}; back to step {step}, {LADDER[name].says} (recovery {count})"
        self._run.emit("warning", message=message, kind=offence.kind, step=offence.step)
        return step

    def _keep_changed(self, engine: Engine, step: int) -> None:
        self._kept = snapshot(engine, step, host=True)
