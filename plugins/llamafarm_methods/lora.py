"""The method `lora`, and what its relatives have in common with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from llamafarm.api import AdapterSpec, Method, RunContext, TrainingStart, TrainingStep
from llamafarm_methods.beginnings import takes_apart
from llamafarm_methods.config import LoraConfig

if TYPE_CHECKING:
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
            kept=int(self.config.init_lora_weights == "corda"),  # what the base gave away
        )

    def begin(self, model: nn.Module, start: TrainingStart, run: RunContext) -> None:
        """Measure the rows, or what quantization took, if the adapter starts from that; or begin with the first rank.

        Raises:
            ModelError: If it cannot be measured.
            StrategyError: If there are fewer steps than ranks.
        """
        if way := self._way():
            way.begin(model, self.config, start, run)

    def stepped(self, model: nn.Module, step: TrainingStep, run: RunContext) -> None:
        """Go on with the next rank, if it is time."""
        if self.config.ranks:
            from llamafarm_methods import _ranks

            _ranks.stepped(model, self.config, step, run)

    def state(self, model: nn.Module) -> Mapping[str, Any]:
        """What the rows showed, or the rank of now."""
        found: Mapping[str, Any] = way.state(model) if (way := self._way()) else {}
        return found

    def load_state(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Begin as before, without the rows."""
        if way := self._way():
            way.load_state(model, self.config, state)

    def put_back(self, model: nn.Module, folder: Path) -> bool:
        """As the training has it, where the saved adapter is another one."""
        return bool(way.put_back(model, folder)) if (way := self._way()) else False

    def written(self, model: nn.Module, folder: Path) -> None:
        """Make the saved adapter one for the base as it was."""
        if way := self._way():
            way.written(model, folder)

    def _way(self) -> Any:
        """How the adapter starts from what is measured, or grows: a module with functions as above; None: neither."""
        if self.config.ranks:
            from llamafarm_methods import _ranks

            return _ranks
        if self.config.init_lora_weights == "eva":
            from llamafarm_methods import _eva

            return _eva
        if self.config.init_lora_weights == "corda":
            from llamafarm_methods import _corda

            return _corda
        if self.config.init_lora_weights == "loftq":
            from llamafarm_methods import _loftq

            return _loftq
        return None

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
    if takes_apart(config.init_lora_weights):
        return frozenset()
    return frozenset({4}) if config.use_dora else frozenset({4, 8})
