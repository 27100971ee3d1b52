"""What a plugin implements: one class per component, with its configuration as the type parameter.

A component is built from its validated configuration and nothing else; everything else comes as arguments of the
methods below. A malformed class is refused when it is defined, not when somebody trains.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import isabstract
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args, get_origin

from llamafarm.api.backend import Backend
from llamafarm.api.config import Config, FineTunerConfig
from llamafarm.api.estimates import Costs, Workload
from llamafarm.api.progress import TrainingStart, TrainingStep
from llamafarm.api.values import (
    AdapterSpec,
    Decision,
    DeviceSpec,
    PreparedData,
    Probe,
    ResumePoint,
    Row,
    RunContext,
    Suggestion,
    TrainingResult,
)
from llamafarm.errors import Problem, RunDirectoryError, StrategyError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


class ContractError(TypeError):
    """A component class breaks the contract; raised when the class is defined."""


ConfigT = TypeVar("ConfigT", bound=Config)
TunerConfigT = TypeVar("TunerConfigT", bound=FineTunerConfig)


class Component(ABC, Generic[ConfigT]):
    """Base of all components.

    Attributes:
        name: The `type` by which strategies select it: lower-case words joined by `-`.
        family: Set by the family's base class.
        Config: The configuration class, taken from the type parameter.
    """

    family: ClassVar[str] = ""
    name: ClassVar[str] = ""
    Config: ClassVar[type[Config]]

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__dict__.get("__orig_bases__", ()):
            arguments = get_args(base)
            origin = get_origin(base)
            if isinstance(origin, type) and issubclass(origin, Component) and isinstance(arguments[0], type):
                cls.Config = arguments[0]
        if isabstract(cls):
            return
        if not _NAME.fullmatch(cls.name):
            raise ContractError(f"{cls.__qualname__}.name is {cls.name!r}: give lower-case words joined by '-'")
        config = getattr(cls, "Config", None)
        if not (isinstance(config, type) and issubclass(config, Config)):
            raise ContractError(
                f"{cls.__qualname__} names no configuration: write {cls.__name__}({cls.__mro__[1].__name__}[MyConfig])"
            )


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Everything decided before anything heavy happens.

    Attributes:
        name: The strategy's name.
        methods: In the order they are applied.
        device: What the run uses.
        output_dir: Where it writes.
        decisions: What was decided rather than given, with reasons.
        given: Dotted paths below the fine-tuner's config that somebody wrote down (file, flag), → where.
        resume: Where an interrupted run in `output_dir` goes on; None: a new run.
    """

    name: str
    methods: tuple[Method[Any], ...]
    device: DeviceSpec
    output_dir: Path
    decisions: tuple[Decision, ...]
    given: Mapping[str, str]
    resume: ResumePoint | None = None


class FineTuner(Component[TunerConfigT]):
    """A back end that trains.

    Attributes:
        adapter_kinds: The `AdapterSpec.kind`s it can run; empty for a fine-tuner that takes no method.
        backends: The programs that it runs in environments of their own, if it does.
        resumes: Whether it goes on from `RunPlan.resume`.
        processes: Whether several processes, each started with the same arguments, train together.
    """

    family = "fine_tuner"
    resumes: ClassVar[bool] = False
    processes: ClassVar[bool] = False
    adapter_kinds: ClassVar[frozenset[str]] = frozenset()
    backends: ClassVar[tuple[Backend, ...]] = ()

    @classmethod
    def default_method(cls, given: Mapping[str, Any]) -> str | None:  # noqa: ARG003  # for overriders
        """The method that stands for an absent one.

        Args:
            given: The fine-tuner's configuration in canonical names, before validation.
        """
        return "lora" if cls.adapter_kinds else None

    @classmethod
    def installed(cls) -> Mapping[str, tuple[bool, str]]:
        """Parts of its own that an installation may lack: name → whether it is there, and what of it, for `doctor`."""
        return {}

    def check(self, plan: RunPlan) -> Iterable[Problem | Decision]:  # for overriders
        """Refuse (problems) or explain (decisions) before anything is loaded; imports nothing heavy."""
        return ()

    def estimate(self, plan: RunPlan, workload: Workload) -> Costs | None:  # for overriders
        """Work out what a run costs on `plan.device`, in milliseconds, without loading anything; None: not known.

        Raises:
            ModelError: If the model's architecture is not known.
        """
        return None

    @abstractmethod
    def fit(self, plan: RunPlan, data: PreparedData, run: RunContext) -> TrainingResult:
        """Train, and leave the result in `plan.output_dir`.

        Raises:
            LlamaFarmError: For everything a user can mend.
        """

    def replay_step(self, plan: RunPlan, data: PreparedData, run: RunContext, folder: Path) -> str | None:
        """Compute a step that broke again, from the record that this fine-tuner made of it.

        Returns:
            The first value that is not finite, in words; None if all are.

        Raises:
            RunDirectoryError: If the record is not of this model, or the fine-tuner keeps none.
        """
        message = f"the fine-tuner {self.name!r} keeps no records of broken steps"
        raise RunDirectoryError.of("LF-RUN-053", message, where=str(folder), hint="the fine-tuner pytorch does")

    def selfcheck(self, plan: RunPlan, data: PreparedData, run: RunContext) -> Mapping[str, Any]:  # for overriders
        """Prove on the run's own model and rows that training computes what it should; write nothing.

        Returns:
            Figures: at least `rows`, `tolerance`, and the relative differences `loss` and `gradients`.

        Raises:
            StrategyError: If this fine-tuner has no such check.
            QualityError: If the differences are more than rounding.
        """
        raise StrategyError.of("LF-TRAIN-060", f"the fine-tuner {self.name!r} has no selfcheck")


class Method(Component[ConfigT]):
    """How parameters are adapted.

    Attributes:
        training_defaults: Weak defaults for `training` that suit this method.
        stacks: True when it may be combined with a method that brings the trainable parameters.
        excludes: Traits of another method of the stack that it cannot be combined with → the reason. A trait is
            `quantized-base`, `changes-base`, `virtual-tokens`, or the name of a method.
        loose_keys: Options that may also stand among a fine-tuner's own, and then put this method on the stack.
    """

    family = "method"
    loose_keys: ClassVar[frozenset[str]] = frozenset()
    training_defaults: ClassVar[Mapping[str, Any]] = {}
    stacks: ClassVar[bool] = False
    excludes: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def adapter(self) -> AdapterSpec:
        """Declare what will be added; needs no model."""

    @abstractmethod
    def apply(self, model: nn.Module, run: RunContext) -> nn.Module:
        """Return the model with this method applied; only parameters to train have `requires_grad`.

        Raises:
            ModelError: If the model has no place for it.
        """

    def begin(self, model: nn.Module, start: TrainingStart, run: RunContext) -> None:  # for overriders
        """A training begins: look at its rows, and start from what they show.

        Called after all methods were applied, before the optimizer is made; a run that resumes calls `load_state`
        instead. It may change and exchange what is trained, in the model as it is.

        Raises:
            LlamaFarmError: If it cannot begin so.
        """

    def penalty(self, model: nn.Module) -> torch.Tensor | None:  # for overriders
        """A term that is added to each step's mean loss, with a gradient; None: none."""
        return None

    def stepped(self, model: nn.Module, step: TrainingStep, run: RunContext) -> None:  # for overriders
        """Act after an optimizer step. Steps that were left out (not finite) are not told of."""

    def state(self, model: nn.Module) -> Mapping[str, Any]:  # for overriders
        """What `begin` and `stepped` keep beyond the weights: plain values and tensors, part of every checkpoint."""
        return {}

    def load_state(self, model: nn.Module, state: Mapping[str, Any]) -> None:  # for overriders
        """Bring the model to a state: right after `apply` in a run that resumes, or whenever a run goes back.

        Afterwards the model's trained parameters have the shapes that they had; their values are put in next.

        Args:
            model: With all methods applied.
            state: From `state`, with tensors on the CPU; stays as it is.
        """

    def put_back(self, model: nn.Module, folder: Path) -> bool:  # for overriders
        """Put the weights of a checkpoint back into the model in training; False: they go in as they are saved."""
        return False

    def written(self, model: nn.Module, folder: Path) -> None:  # for overriders
        """The model was saved in a folder: bring its files into the form that others load."""

    def learning_rates(self, model: nn.Module) -> Mapping[str, float]:  # for overriders
        """Parameters that learn faster or slower than the others: name in `model` → factor of `learning_rate`."""
        return {}

    def first_token(self, tokenizer: Any) -> int | None:  # for overriders
        """The token that every row has to begin with, in training and afterwards; None: rows stay as they are.

        It is put where it is missing, is never learned, and rows never grow beyond their longest length by it.

        Raises:
            ModelError: If the tokenizer does not have it.
        """
        return None

    def finish(self, model: nn.Module, run: RunContext) -> None:  # for overriders
        """The run is over: take away what `apply` put around the model (hooks), not what it trained."""

    def files(self, model: nn.Module) -> Mapping[str, str]:  # for overriders
        """Text files, name → content, that are saved beside the weights in the result and in every checkpoint."""
        return {}

    def restore(self, model: nn.Module, folder: Path) -> nn.Module:  # for overriders
        """Put back what `apply` did beyond what the saved weights carry: called whenever a saved model is loaded.

        Args:
            model: As it was loaded from `folder`, adapters included.
            folder: The result or a checkpoint, with the files of `files`.

        Raises:
            ModelError: If it does not fit.
        """
        return model

    def bake(self, model: nn.Module) -> nn.Module:  # for overriders
        """Return the model so that its weights alone behave as trained: what any server loads.

        Args:
            model: After `restore`; adapters may be merged into it already. It may be changed in place.

        Raises:
            ModelError: If no weights can say it.
        """
        return model


class HardwareProfile(Component[ConfigT]):
    """A kind of device: finds it, and suggests settings that suit it.

    Attributes:
        priority: `hardware: auto` takes the available profile with the highest.
    """

    family = "hardware"
    priority: ClassVar[int] = 0

    @abstractmethod
    def probe(self) -> Probe:
        """Look for the device without importing torch; cheap."""

    def suggest(self, device: DeviceSpec) -> Sequence[Suggestion]:  # for overriders
        """Weak defaults for this device, each with its reason."""
        return ()


class DataSplitter(Component[ConfigT]):
    """Decides which rows are held out."""

    family = "data_splitter"

    @abstractmethod
    def held_out(self, rows: Iterable[Row]) -> Sequence[bool]:
        """Say for each row whether it is held out, in order.

        Rows come once, with duplicates already removed: equal content goes to one side by the host's hand. Neither
        side may be empty when there are two rows or more.
        """

    def held_out_by_digest(self, digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """The same, for splitters that look at nothing but digests: they split millions of rows in seconds.

        Where it is overridden, the host may ask it instead of `held_out`: both must give the same answer.

        Args:
            digests: Shape (rows, 2): the two halves of each row's digest as numbers (the first byte counts most); the
                first halves are all different.
        """
        raise NotImplementedError
