"""The fine-tuner's shell."""

from __future__ import annotations

from collections.abc import Iterable

from llamafarm.api import Decision, FineTuner, PreparedData, RunContext, RunPlan, TrainingResult
from llamafarm.errors import PluginError, Problem
from llamafarm_tuners.llamafactory.config import LlamaFactoryConfig

_ABSENT = Problem(
    "LF-PLUGIN-006",
    "fine-tuner 'llamafactory' checks strategies, but this version cannot run LLaMA-Factory: its requirements exclude "
    "ours, so it needs an environment of its own, which LlamaFarm does not set up yet",
    hint="train with type: pytorch",
)


class LlamaFactoryTuner(FineTuner[LlamaFactoryConfig]):
    """Checks strategies for LLaMA-Factory; refuses to train, and says so."""

    name = "llamafactory"
    adapter_kinds = frozenset({"lora", "qlora", "full"})

    def check(self, plan: RunPlan) -> Iterable[Problem | Decision]:
        """Refuse: nothing can be run yet."""
        return [_ABSENT]

    def fit(self, plan: RunPlan, data: PreparedData, run: RunContext) -> TrainingResult:
        """Never reached through a plan.

        Raises:
            PluginError: Always.
        """
        raise PluginError([_ABSENT])
