"""Further methods of PEFT through one bridge: what a method is called there, its options, and what it can do.

The options are written down here so that a strategy is checked without importing PEFT; a test compares them with PEFT's
own. What is true of one of them alone stands in its entry, everything else is the same for all.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, create_model, model_validator

from llamafarm.api import AdapterSpec, Config, Method, RunContext
from llamafarm_methods.config import TargetConfig

if TYPE_CHECKING:
    from torch import nn

ROWS_ALONE = MappingProxyType(
    {"training.packing": "its virtual tokens stand before a row, and only the first row of a pack would see them"}
)
"""What no method with virtual tokens can be trained with."""

_Names = tuple[str, ...]
_Count = Annotated[int, Field(ge=1)]
_Whole = Annotated[int, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, lt=1)]
_Inner = Annotated[float, Field(gt=0, lt=1)]
_Number = Annotated[float, Field(allow_inf_nan=False)]

_OPTIONS: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        "r": (_Whole, "Rank."),
        "alpha": (_Number, "Scale: updates are multiplied by alpha / r."),
        "module_dropout": (_Share, "Share of the adapters that are left out in a training step."),
        "rank_dropout": (_Share, "Share of the ranks that are left out in a training step."),
        "feedforward_modules": (_Names, "Adapted layers whose input is scaled, not their output."),
        "d_initial": (_Number, "First value of the trained scales."),
        "vera_dropout": (_Share, "Dropout before the adapters, in training."),
        "projection_prng_key": (int, "Seed of the random projections."),
        "save_projection": (bool, "Save the random projections too, so that they never have to be drawn again."),
        "oft_block_size": (_Whole, "Size of the rotated blocks; divides the inputs of each layer. Exclusive with r."),
        "coft": (bool, "Keep the rotations small."),
        "eps": (_Number, "How small `coft` keeps them."),
        "block_share": (bool, "One rotation for all blocks of a layer."),
        "decompose_both": (bool, "Take the other factor of the Kronecker product apart too."),
        "decompose_factor": (int, "Size of the first factor; -1: about the square root."),
        "apply_GS": (bool, "Make the reflections orthogonal to one another."),
        "n_frequency": (_Count, "Trained coefficients of each layer."),
        "scaling": (_Number, "Factor of the coefficients."),
        "random_loc_seed": (int, "Seed of the places of the coefficients."),
        "miss_dropout": (_Share, "Dropout before the adapters, in training."),
        "mini_r": (_Count, "Ranks that share one matrix."),
        "randlora_alpha": (_Number, "Scale: updates are multiplied by it, divided by r."),
        "randlora_dropout": (_Share, "Dropout before the adapters, in training."),
        "num_vectors": (_Count, "Vectors in the bank that all layers share."),
        "vector_length": (_Count, "Length of the vectors; divides the inputs and outputs of each layer."),
        "topk": (_Count, "Vectors that make up one part of an adapter."),
        "vblora_dropout": (_Share, "Dropout before the adapters, in training."),
        "variant": (Literal["road_1", "road_2", "road_4"], "How many values each rotation has of its own."),
        "group_size": (_Count, "How the rotated pairs are grouped; divides the outputs of each layer."),
        "block_size": (_Count, "Size of the circulant blocks; divides the inputs and outputs of each layer."),
        "delora_lambda": (_Number, "Bound of the update's norm at the start."),
        "hira_dropout": (_Share, "Dropout before the adapters, in training."),
        "target_r": (_Count, "Average rank that is left in the end."),
        "init_r": (_Count, "Rank of each layer at the start."),
        "tinit": (_Whole, "Steps before ranks are taken away."),
        "tfinal": (_Whole, "Last steps, in which the ranks stay as they are."),
        "deltaT": (_Count, "Steps between two rounds of taking ranks away."),
        "beta1": (_Inner, "How slowly the importance of a weight is averaged over steps."),
        "beta2": (_Inner, "How slowly its uncertainty is."),
        "orth_reg_weight": (
            Annotated[float, Field(ge=0, allow_inf_nan=False)],
            "Weight of the term in the loss that keeps the directions orthogonal.",
        ),
        "lora_alpha": (_Number, "Scale: updates are multiplied by lora_alpha / init_r."),
        "lora_dropout": (_Share, "Dropout before the adapters, in training."),
        "boft_block_size": (_Whole, "Size of the rotated blocks; divides the inputs of each layer; 0: see block_num."),
        "boft_block_num": (_Whole, "Number of blocks instead of their size."),
        "boft_n_butterfly_factor": (_Count, "Rotations one after the other, each over other neighbours; 1: as in OFT."),
        "boft_dropout": (_Share, "Share of the blocks that are left out in a training step."),
        "encoder_reparameterization_type": (Literal["MLP", "LSTM"], "The network that makes the prompt."),
        "encoder_hidden_size": (_Count | None, "Its width; that of the model if absent."),
        "encoder_num_layers": (_Count, "Layers of an LSTM."),
        "num_virtual_tokens": (_Count, "Positions before each row whose content is learned."),
        "prompt_tuning_init": (
            Literal["RANDOM", "SAMPLE_VOCAB"],
            "What the positions start from: random vectors, or tokens of the vocabulary.",
        ),
    }
)


def _nothing_wrong(_config: Any) -> str:
    return ""


class PeftConfig(Config):
    """Options that every bridged method has: none."""


class LayerConfig(TargetConfig):
    """Options that every bridged method has that adapts layers: which ones."""


@dataclass(frozen=True, slots=True)
class Bridge:
    """A method of PEFT.

    Attributes:
        type: What strategies call it.
        peft: Its configuration class in PEFT.
        options: What can be set, with the defaults.
        fixed: What PEFT is told besides.
        layers: What it adapts: linear layers, normalizations, or nothing.
        bits: Widths of a quantized base that it can stand on.
        virtual_tokens: Whether it puts positions before each row.
        identity: Whether the model answers as before until it is trained.
        refuses: Settings that it cannot be trained with → the reason.
        kept: Values that it keeps in training for each trained one.
        check: What is wrong with options that do not fit together; empty if they do.
    """

    type: str
    peft: str
    options: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    layers: Literal["linear", "norm", "none"] = "linear"
    bits: frozenset[int] = frozenset()
    virtual_tokens: bool = False
    identity: bool = True
    refuses: Mapping[str, str] = field(default_factory=dict)
    kept: int = 0
    check: Callable[[Any], str] = _nothing_wrong

    def config(self) -> Any:
        """The configuration class of the method in strategies."""
        fields: dict[str, Any] = {
            name: (_OPTIONS[name][0], Field(default, description=_OPTIONS[name][1]))
            for name, default in self.options.items()
        }
        base = PeftConfig if self.layers == "none" else LayerConfig

        def checked(config: Any) -> Any:
            if wrong := self.check(config):
                raise ValueError(wrong)
            return config

        validators: dict[str, Any] = {"fit_together": model_validator(mode="after")(checked)}
        about = f"Options of {self.type}."
        return create_model(f"{self.peft}Options", __base__=base, __doc__=about, __validators__=validators, **fields)


class PeftMethod(Method[PeftConfig]):
    """A method that PEFT carries out."""

    training_defaults = MappingProxyType({"learning_rate": 1e-3})

    def __init_subclass__(cls, *, bridge: Bridge, **kwargs: Any) -> None:
        cls.bridge = bridge  # type: ignore[method-assign,assignment]  # what the abstract property stands for
        cls.name, cls.Config = bridge.type, bridge.config()
        super().__init_subclass__(**kwargs)

    @property
    @abstractmethod
    def bridge(self) -> Bridge:
        """What the class is named after; given where it is defined."""

    def adapter(self) -> AdapterSpec:
        """The options as configured."""
        options = self.config.model_dump(mode="json", exclude={"type"})
        virtual = self.bridge.virtual_tokens
        return AdapterSpec(
            self.bridge.type,
            options,
            bits=self.bridge.bits,
            virtual_tokens=options["num_virtual_tokens"] if virtual else 0,
            unmergeable="it is put before each row, and changes no weight" if virtual else "",
            refuses=self.bridge.refuses,
            kept=self.bridge.kept,
        )

    def apply(self, model: nn.Module, run: RunContext) -> nn.Module:
        """Add what is trained.

        Raises:
            ModelError: If a name matches nothing, or an option does not fit the model's sizes.
        """
        from llamafarm_methods._bridge import attach

        return attach(model, self.bridge, self.config, run)

    def restore(self, model: nn.Module, folder: Path) -> nn.Module:
        """Give logits for the row's own tokens alone, as after `apply`."""
        from llamafarm_methods._bridge import hide_virtual_tokens

        return hide_virtual_tokens(model, self.bridge)
