"""Switches of torch that hold for the whole process: set for a run, put back after it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from llamafarm.api import RunPlan, TrainingConfig
from llamafarm.errors import StrategyError
from llamafarm.models.inner import transformers_model
from llamafarm_tuners.pytorch.kernels import uncompilable
from llamafarm_tuners.pytorch.onednn import keep_few
from llamafarm_tuners.pytorch.precision import computes

T = TypeVar("T")


@contextmanager
def process_switches(training: TrainingConfig, plan: RunPlan) -> Iterator[None]:
    """Choose among the kernels of sdpa attention, the precision of fp32 products, and how many compiled ones stay.

    The memory-efficient and the plain kernel stay allowed, so that something is always left to compute with.
    """
    keep_few()
    sdpa = torch.backends.cuda  # the switches live there; the flash one is heeded on CPUs too
    with ExitStack() as stack:
        for read, write, wanted in (
            (sdpa.cudnn_sdp_enabled, sdpa.enable_cudnn_sdp, not training.disable_cudnn_sdpa),
            (sdpa.flash_sdp_enabled, sdpa.enable_flash_sdp, not training.disable_flash_sdpa),
            (sdpa.mem_efficient_sdp_enabled, sdpa.enable_mem_efficient_sdp, True),
            (sdpa.math_sdp_enabled, sdpa.enable_math_sdp, True),
        ):
            stack.enter_context(_set(read, write, wanted))
        if training.tf32 is not None and computes(plan.device, "tf32"):
            products = "high" if training.tf32 else "highest"
            stack.enter_context(_set(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, products))
        yield


@contextmanager
def compiled(model: nn.Module, training: TrainingConfig, plan: RunPlan) -> Iterator[None]:
    """Compile a model's forward pass in place while it is trained: its decoder layers, or all of it if none are known.

    The layers share one code, which is compiled once. In place, because a wrapper would put `_orig_mod.` in front of
    the names of all weights, and because who holds the model then runs the compiled one. Undone at the end: generating
    answers, with a new length at each token, would compile without end.

    Raises:
        StrategyError: If the compiler fails.
    """
    if not training.torch_compile or uncompilable(training, plan):
        yield
        return
    from torch._dynamo.exc import TorchDynamoException  # a second, for those who compile

    parts = repeated_layers(model) or [model]
    for part in parts:
        part.compile(backend=training.torch_compile_backend)
    try:
        with warnings.catch_warnings():
            # the compiler asks each input of a layer for its gradient, and only keeps the answer from being printed
            warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf", UserWarning)
            yield
    except TorchDynamoException as error:
        reason = " ".join(str(error).split())
        where = plan.given.get("training.torch_compile", "")
        message = f"the model cannot be compiled: {reason[:300]}"
        raise StrategyError.of("LF-TRAIN-036", message, where=where, hint="leave training.torch_compile out") from error
    finally:
        for part in parts:
            part._compiled_call_impl = None  # noqa: SLF001  # torch has no public way back
        torch.compiler.reset()  # what is compiled counts against a limit, beyond which torch silently compiles no more


def repeated_layers(model: Any) -> list[nn.Module]:
    """The layers that an architecture repeats; none if it does not say which."""
    inner = transformers_model(model)
    names = frozenset(getattr(inner, "_no_split_modules", None) or ())
    return [module for module in inner.modules() if type(module).__name__ in names]


@contextmanager
def _set(read: Callable[[], T], write: Callable[[T], object], wanted: T) -> Iterator[None]:
    before = read()
    write(wanted)
    try:
        yield
    finally:
        write(before)
