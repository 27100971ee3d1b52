"""A training as one value: taken at a step, put back later, in memory or from a checkpoint, to the last bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from llamafarm.errors import DiskError, NumericError, StrategyError
from llamafarm_tuners.pytorch._memory import is_out_of_memory
from llamafarm_tuners.pytorch._random import random_states, set_random_state
from llamafarm_tuners.pytorch._tree import copied, pack, unpack
from llamafarm_tuners.pytorch.journal import write_json

STATE: Final = "training_state.json"
WEIGHTS: Final = "training_state.safetensors"
OPTIMIZER: Final = "optimizer.safetensors"
METHODS: Final = "methods"
"""What the methods keep, among `Engine.others`."""
OWN_FILES: Final = frozenset({STATE, WEIGHTS, OPTIMIZER})
_VERSION: Final = 1
_OF_METHODS: Final = f"state.others.{METHODS}."
_ODD: Final = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    OSError,
    SafetensorError,
)


class Stateful(Protocol):
    """Something whose state is one nested value of plain ones and tensors."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Engine:
    """What a training consists of while it runs.

    Attributes:
        model: With its methods applied; not wrapped.
        optimizer: Over its trainable parameters.
        scheduler: Of the learning rate.
        accelerator: Device, loss scaling and processes.
        others: Whatever else has a state, by a name that stays: `best`, `report`, `guard` …
    """

    model: nn.Module
    optimizer: Stateful
    scheduler: Stateful
    accelerator: Accelerator
    others: Mapping[str, Stateful]


@dataclass(frozen=True, slots=True)
class TrainingState:
    """Everything that a training needs to go on as if it had never stopped.

    The rows of each step follow from seed, epoch and step alone, so that `step` is the position in the data.

    Attributes:
        step: Optimizer steps done.
        weights: Trainable parameters and buffers by name.
        optimizer: Its state.
        scheduler: Its state.
        scaler: That of the loss scaling; None without.
        others: Those of `Engine.others`.
        random: The generators of each process.
    """

    step: int
    weights: Mapping[str, torch.Tensor]
    optimizer: Any
    scheduler: Any
    scaler: Any
    others: Mapping[str, Any]
    random: tuple[str, ...]


def snapshot(engine: Engine, step: int, *, copy: bool = True, host: bool = False) -> TrainingState:
    """Take the state after `step`. All processes call it.

    Args:
        engine: What trains.
        step: Optimizer steps done.
        copy: With tensors of its own, to be put back later; without, it is true until the next step only.
        host: Those are in main memory, wherever the model is.
    """
    scaler = engine.accelerator.scaler
    state = TrainingState(
        step,
        dict(trained_weights(engine.model)),
        engine.optimizer.state_dict(),
        engine.scheduler.state_dict(),
        scaler.state_dict() if scaler is not None else None,
        {name: other.state_dict() for name, other in engine.others.items()},
        random_states(engine.accelerator),
    )
    return _copied(state, "cpu" if host else None) if copy else state


def restore(engine: Engine, state: TrainingState) -> None:
    """Put a state back; the state stays as it is and can be put back again.

    The methods come first: they may have changed the shapes of what is trained since.

    Raises:
        StrategyError: If the model, the optimizer or the schedule is not the one that it was taken of.
    """
    state = _copied(state)  # an optimizer keeps the tensors it is given, and changes them
    if (methods := engine.others.get(METHODS)) is not None:
        methods.load_state_dict(state.others.get(METHODS, {}))
    _put_back_weights(engine, state)
    try:
        engine.optimizer.load_state_dict(state.optimizer)
        engine.scheduler.load_state_dict(state.scheduler)
    except (KeyError, ValueError) as error:
        raise _other_model(f"the optimizer's or the schedule's state does not fit: {error}") from None
    if state.scaler is not None and engine.accelerator.scaler is not None:
        engine.accelerator.scaler.load_state_dict(state.scaler)
    for name, other in engine.others.items():
        if name in state.others and name != METHODS:
            if not _alike(other.state_dict(), state.others[name]):
                raise ValueError(f"what it says of {name} is of another kind")
            other.load_state_dict(state.others[name])
    rank = engine.accelerator.process_index
    if rank < len(state.random):
        set_random_state(state.random[rank], engine.accelerator.device)


def _put_back_weights(engine: Engine, state: TrainingState) -> None:
    present = dict(trained_weights(engine.model))
    if present.keys() != state.weights.keys():
        odd = sorted(present.keys() ^ state.weights.keys())
        raise _other_model(f"{odd[0]} is trained on one side only ({len(odd)} differ)")
    with torch.no_grad():
        for name, tensor in present.items():
            if tensor.shape != state.weights[name].shape or tensor.dtype != state.weights[name].dtype:
                raise _other_model(f"{name} has another shape or precision")
            tensor.copy_(state.weights[name])


def write_state(state: TrainingState, folder: Path) -> None:
    """Write a state into a folder that has the model's own files already; a weight that is in them is not repeated.

    Raises:
        NumericError: If anything in it is not finite.
    """
    tensors: dict[str, torch.Tensor] = {}
    optimizer: dict[str, torch.Tensor] = {}
    rest = {"scheduler": state.scheduler, "scaler": state.scaler, "others": dict(state.others)}
    described = pack(rest, tensors, "state")
    described["optimizer"] = pack(state.optimizer, optimizer, "state")
    saved = _Saved(folder)
    elsewhere = {name: place for name, tensor in state.weights.items() if (place := saved.place(name, tensor))}
    weights = {f"weight.{name}": tensor for name, tensor in state.weights.items() if name not in elsewhere}
    for name, tensor in (optimizer | weights | tensors).items():
        if not _finite(tensor):
            message = f"{name} of the training state is not finite: the checkpoint is not saved"
            raise NumericError.of("LF-NUMERIC-003", message, hint="lower learning_rate")
    save_file(_apart(optimizer), folder / OPTIMIZER)
    save_file(_apart(tensors | weights), folder / WEIGHTS)
    head = {"version": _VERSION, "step": state.step, "weights": elsewhere, "random": list(state.random)}
    write_json(folder / STATE, head | described)


@contextmanager
def understood(folder: Path) -> Iterator[None]:
    """Turn what reading or putting back an odd state raises into an error of ours: checkpoints may come from anybody.

    Raises:
        DiskError: If what is read or put back within is no state of a training.
    """
    try:
        yield
    except _ODD as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        message = f"the training state in {folder.name} cannot be understood ({type(error).__name__}: {reason})"
        hint = "go on from another checkpoint: train --resume RUN/checkpoint-N"
        raise DiskError.of("LF-DISK-030", message, where=str(folder), hint=hint) from error


def read_state(folder: Path) -> TrainingState:
    """Read a state that `write_state` wrote, on the CPU.

    Raises:
        DiskError: If it is none.
    """
    with understood(folder):
        return _read_state(folder)


def _read_state(folder: Path) -> TrainingState:
    described = json.loads((folder / STATE).read_text(encoding="utf-8"))
    if described["version"] != _VERSION:
        raise ValueError(f"version {described['version']!r}, not {_VERSION}")
    if type(described["step"]) is not int or described["step"] < 0:
        raise ValueError(f"step {described['step']!r}")
    tensors = load_file(folder / WEIGHTS)
    weights = {name.removeprefix("weight."): tensors[name] for name in tensors if name.startswith("weight.")}
    for name, (file, key) in described["weights"].items():
        if Path(file).name != file:
            raise ValueError(f"a weight in {file!r}, outside the checkpoint")
        with safe_open(folder / file, framework="pt") as opened:
            weights[name] = opened.get_tensor(key)
    rest = unpack({key: described[key] for key in ("scheduler", "scaler", "others")}, tensors)
    optimizer = unpack(described["optimizer"], load_file(folder / OPTIMIZER))
    return TrainingState(
        described["step"],
        weights,
        optimizer,
        rest["scheduler"],
        rest["scaler"],
        rest["others"],
        tuple(described["random"]),
    )


def read_methods(folder: Path) -> Mapping[str, Any]:
    """Of a state that `write_state` wrote, what the methods keep."""
    described = json.loads((folder / STATE).read_text(encoding="utf-8"))["others"].get(METHODS, {})
    with safe_open(folder / WEIGHTS, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys() if name.startswith(_OF_METHODS)}  # noqa: SIM118  # no mapping
    state: Mapping[str, Any] = unpack(described, tensors)
    return state


class _Saved:
    """The tensors of the model's own files."""

    def __init__(self, folder: Path) -> None:
        self._places: dict[str, tuple[str, Any]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            opened: Any = safe_open(file, framework="pt")
            self._places.update(dict.fromkeys(opened.keys(), (file.name, opened)))

    def place(self, name: str, tensor: torch.Tensor) -> tuple[str, str] | None:
        """File and key of a tensor, if the very same one stands there."""
        for key in (name, name.replace(".default.", ".").removesuffix(".default")):
            if key in self._places:
                file, opened = self._places[key]
                found = opened.get_tensor(key)
                if found.dtype == tensor.dtype and torch.equal(found, tensor.detach().cpu()):
                    return file, key
        return None


def trained_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Trainable parameters and buffers, by name."""
    yield from ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    yield from model.named_buffers()


def _alike(own: Any, given: Any) -> bool:
    """Whether two states have values of the same kinds under the names that both have."""
    if own is None or given is None:
        return True
    if isinstance(own, Mapping):
        return isinstance(given, Mapping) and all(_alike(own[key], given[key]) for key in own.keys() & given.keys())
    return any(isinstance(own, kinds) and isinstance(given, kinds) for kinds in (int | float, str, list | tuple))


def _copied(state: TrainingState, device: str | None = None) -> TrainingState:
    return replace(
        state,
        weights=copied(dict(state.weights), device),
        optimizer=copied(state.optimizer, device),
        scheduler=copied(state.scheduler),
        scaler=copied(state.scaler),
        others=copied(dict(state.others)),
    )


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous, and none sharing memory with another, as safetensors wants them."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        result[name] = tensor.detach() if whole and place not in seen else tensor.detach().clone().contiguous()
        seen.add(place)
    return result


def _other_model(what: str) -> StrategyError:
    message = f"the checkpoint is of another training: {what}"
    return StrategyError.of("LF-TRAIN-050", message, hint="resume with the strategy that the run was started with")
