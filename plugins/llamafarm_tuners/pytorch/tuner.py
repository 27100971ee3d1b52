"""The fine-tuner `pytorch`; importing it imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llamafarm.api import Costs, Decision, FineTuner, PreparedData, RunContext, RunPlan, TrainingResult, Workload
from llamafarm.errors import Problem
from llamafarm.models.lean import lean_imports
from llamafarm_tuners.pytorch.checks import check
from llamafarm_tuners.pytorch.config import PytorchConfig
from llamafarm_tuners.pytorch.space import require_space

BRIDGED = (
    *("ia3", "vera", "oft", "loha", "lokr", "hra", "fourierft", "miss", "randlora", "vblora", "road", "c3a", "delora"),
    *("hira", "ln-tuning", "prompt-tuning", "prefix-tuning", "adalora", "boft", "p-tuning"),
)
"""Adapters that PEFT puts in, saves and merges by itself, so that training needs to know nothing of them."""


class PytorchTuner(FineTuner[PytorchConfig]):
    """Trains transformers models with PEFT adapters in this process."""

    name = "pytorch"
    adapter_kinds = frozenset({"lora", "dora", "full", "freeze", "bos-scaling", *BRIDGED})
    resumes = True
    processes = True

    @classmethod
    def installed(cls) -> Mapping[str, tuple[bool, str]]:
        """The kernels for training on a CPU, which are compiled when LlamaFarm is installed."""
        from llamafarm_tuners.pytorch.fast.native import library

        found = library()
        return {"compiled kernels": (found.loaded is not None, found.told)}

    def check(self, plan: RunPlan) -> Iterable[Problem | Decision]:
        """Refuse or explain every setting that would have no effect, or cannot work here."""
        return check(self.config, plan)

    def estimate(self, plan: RunPlan, workload: Workload) -> Costs:
        """Work out memory, operations and disk from the model's sizes.

        Raises:
            ModelError: If the architecture is not known.
        """
        from llamafarm_tuners.pytorch.estimate import estimate

        return estimate(self.config, plan, workload)

    def fit(self, plan: RunPlan, data: PreparedData, run: RunContext) -> TrainingResult:
        """Train.

        Raises:
            LlamaFarmError: For everything a user can mend.
        """
        require_space(self.config, plan, run)
        with lean_imports():
            from llamafarm_tuners.pytorch._fit import fit

        return fit(self.config, plan, data, run)

    def replay_step(self, plan: RunPlan, data: PreparedData, run: RunContext, folder: Path) -> str | None:
        """Compute a step that broke again.

        Raises:
            RunDirectoryError: If the record is not of this model.
        """
        with lean_imports():
            from llamafarm_tuners.pytorch._replay import replay_step

        return replay_step(self.config, plan, data, run, folder)

    def selfcheck(self, plan: RunPlan, data: PreparedData, run: RunContext) -> Mapping[str, Any]:
        """Compare what training computes with what transformers and torch compute, on the first rows.

        Raises:
            QualityError: If they differ by more than rounding.
        """
        with lean_imports():
            from llamafarm_tuners.pytorch._selfcheck import selfcheck

        return selfcheck(self.config, plan, data, run)
