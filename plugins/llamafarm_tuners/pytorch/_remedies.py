"""What is changed, one thing after the other, when a training does not stay finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from llamafarm.models.inner import transformers_model
from llamafarm_tuners.pytorch.fast._attention import KERNEL, VARIABLE

_SDPA: Final = ("sdpa", KERNEL, VARIABLE)
_SIXTEEN: Final = (torch.bfloat16, torch.float16)


class Patient(NamedTuple):
    """What a remedy is applied to.

    Attributes:
        model: With its methods applied; not wrapped.
        optimizer: Over its trainable parameters.
        scheduler: Of the learning rate.
        accelerator: Device, precision and processes.
        plain: Has the model compute in its own ways, rows padded, from now on.
        factor: What the learning rate is multiplied by.
    """

    model: nn.Module
    optimizer: Any
    scheduler: Any
    accelerator: Accelerator
    plain: Callable[[], None]
    factor: float


class Remedy(NamedTuple):
    """A rung of the ladder.

    Attributes:
        helps: Whether there is anything to change.
        apply: Changes it. Applied again to a model that was loaded anew when a run is resumed, unless it is `kept`.
        says: What it does, in words.
        kept: What it changes is part of the training state.
    """

    helps: Callable[[Patient], bool]
    apply: Callable[[Patient], None]
    says: str
    kept: bool = False


def next_remedy(taken: Sequence[str], patient: Patient) -> str:
    """The lowest rung above the last one taken that changes anything here."""
    names = list(LADDER)
    above = names[names.index(taken[-1]) + 1 :] if taken else names
    return next((name for name in above if LADDER[name].helps(patient)), names[-1])


def apply_again(taken: Sequence[str], patient: Patient) -> None:
    """Bring a model that was loaded anew where the remedies had brought it."""
    for name in taken:
        if not LADDER[name].kept:
            LADDER[name].apply(patient)


def _kernel(patient: Patient) -> str:
    return str(getattr(transformers_model(patient.model).config, "_attn_implementation", ""))


def _flash_helps(patient: Patient) -> bool:
    return _kernel(patient) in _SDPA and torch.backends.cuda.flash_sdp_enabled()


def _no_flash(_patient: Patient) -> None:
    torch.backends.cuda.enable_flash_sdp(enabled=False)  # heeded on CPUs too


def _eager_helps(patient: Patient) -> bool:
    return _kernel(patient) in (*_SDPA, "flash_attention_2", "flex_attention")


def _eager(patient: Patient) -> None:
    patient.plain()
    transformers_model(patient.model).set_attn_implementation("eager")


def _fp32_helps(patient: Patient) -> bool:
    mixed = patient.accelerator.mixed_precision != "no" and patient.accelerator.native_amp
    return mixed or any(parameter.dtype in _SIXTEEN for parameter in patient.model.parameters())


def _fp32(patient: Patient) -> None:
    """No autocast, no loss scaling, all weights in 32 bits; quantized ones stay as they are."""
    patient.plain()  # what is fused was made for the formats that were there
    accelerator: Any = patient.accelerator
    accelerator.native_amp, accelerator.scaler = False, None
    if hasattr(patient.optimizer, "scaler"):
        patient.optimizer.scaler = None
    for tensor in [*patient.model.parameters(), *patient.model.buffers()]:
        if tensor.dtype in _SIXTEEN:
            tensor.data = tensor.data.float()
    for module in patient.model.modules():  # bitsandbytes computes in the format that it was told
        if getattr(module, "compute_dtype", None) in _SIXTEEN:
            module.compute_dtype = torch.float32
    for state in getattr(patient.optimizer, "state", {}).values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.dtype in _SIXTEEN:
                state[name] = value.float()


def _slower(patient: Patient) -> None:
    """Lower the whole schedule: what it starts from, and where it is."""
    patient.scheduler.base_lrs = [rate * patient.factor for rate in patient.scheduler.base_lrs]
    for group in patient.optimizer.param_groups:
        group["lr"] = group["lr"] * patient.factor
        group["initial_lr"] = group["initial_lr"] * patient.factor
    patient.scheduler._last_lr = [group["lr"] for group in patient.optimizer.param_groups]  # noqa: SLF001  # it has no setter


def _nothing(_patient: Patient) -> None:
    """Leaving the rows out may be enough."""


def _always(_patient: Patient) -> bool:
    return True


LADDER: Final[Mapping[str, Remedy]] = MappingProxyType(
    {
        "skip": Remedy(_always, _nothing, "its rows are left out"),
        "no-flash-sdpa": Remedy(_flash_helps, _no_flash, "its rows are left out, flash attention of sdpa is off"),
        "eager": Remedy(_eager_helps, _eager, "its rows are left out, attention is eager"),
        "fp32": Remedy(_fp32_helps, _fp32, "its rows are left out, everything is computed in fp32"),
        "lower-learning-rate": Remedy(_always, _slower, "its rows are left out, the learning rate is lower", kept=True),
    }
)
"""From the mildest to the one that can be taken again and again."""
