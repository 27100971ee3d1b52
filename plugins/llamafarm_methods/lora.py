"""The method `lora`, and what its relatives have in common with it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from llamafarm.api import AdapterSpec, Method, RunContext, TrainingStart, TrainingStep
from llamafarm_methods.config import LoraConfig
from llamafarm_methods.ranks import rank_at, require_steps

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

LoraConfigT = TypeVar("LoraConfigT", bound=LoraConfig)


class LoraFamily(Method[LoraConfigT]):
    """Low-rank adapters, however the base is stored and whatever is trained beside them."""

    training_defaults = MappingProxyType({"learning_rate": 2e-4})

    def spec(self, quantization: Mapping[str, Any]) -> AdapterSpec:
        """Rank, scale and targets as configured, alpha resolved, on a base that is stored so."""
        options = self.config.model_dump(mode="json", exclude={"type", "quantization"})
        return AdapterSpec(
            "dora" if self.config.use_dora else "lora",
            {**options, "alpha": self.config.scale_numerator, "alpha_pattern": self.config.alphas},
            quantization=quantization,
            bits=_bits(self.config),
            refuses={"training.torch_compile": "what is compiled has the first rank"} if self.config.ranks else {},
            grows=bool(self.config.ranks),
        )

    def begin(self, model: nn.Module, start: TrainingStart, run: RunContext) -> None:
        """Say with which rank training begins, where it grows.

        Raises:
            StrategyError: If there are fewer steps than ranks.
        """
        if self.config.ranks:
            require_steps(start.steps, self.config.ranks)
            run.emit("notice", message=f"Training with rank {self.config.first_rank}")

    def stepped(self, model: nn.Module, step: TrainingStep, run: RunContext) -> None:
        """Keep what a rank has learned in a folder of its own, and go on with the next."""
        ranks = self.config.ranks
        if not ranks:
            return
        from llamafarm_methods._ranks import rank_of, resize

        now = rank_of(model)
        coming = rank_at(step.step + 1, step.steps, ranks)
        if coming != now or step.step == step.steps:
            step.save(f"checkpoint_r{now}")
        if coming != now:
            resize(model, coming, step.optimizer.state, run.seed)
            run.emit("notice", message=f"Training with rank {coming}")

    def state(self, model: nn.Module) -> Mapping[str, Any]:
        """The rank of now, where it grows."""
        if not self.config.ranks:
            return {}
        from llamafarm_methods._ranks import rank_of

        return {"rank": rank_of(model)}

    def load_state(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Bring the adapters to the rank that they had."""
        from llamafarm_methods._ranks import resize

        resize(model, int(state["rank"]))

    def put_back(self, model: nn.Module, folder: Path) -> bool:
        """Bring the adapters to the rank of what is put back."""
        if self.config.ranks:
            from llamafarm.models.adapter_config import read_adapter_config
            from llamafarm_methods._ranks import resize

            resize(model, int(read_adapter_config(folder)["r"]))
        return False

    def learning_rates(self, model: nn.Module) -> Mapping[str, float]:
        """LoRA+: the B matrices learn faster."""
        ratio = self.config.loraplus_lr_ratio
        if ratio is None:
            return {}
        return {name: ratio for name, _ in model.named_parameters() if ".lora_B." in name}


class Lora(LoraFamily[LoraConfig]):
    """Low-rank adapters on the linear layers; the base stays as it is."""

    name = "lora"

    def adapter(self) -> AdapterSpec:
        """Rank, scale and targets as configured, alpha resolved."""
        return self.spec({})

    def apply(self, model: nn.Module, run: RunContext) -> nn.Module:
        """Add the adapters.

        Raises:
            ModelError: If a name matches nothing, or the base cannot carry them.
        """
        from llamafarm_methods._peft import attach_lora

        return attach_lora(model, self.config, run)


def _bits(config: LoraConfig) -> frozenset[int]:
    if isinstance(config.init_lora_weights, str) and config.init_lora_weights.startswith(("pissa", "olora")):
        return frozenset()
    return frozenset({4}) if config.use_dora else frozenset({4, 8})
