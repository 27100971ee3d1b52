"""Rows that go through the model at a time: found by trying, and halved when the memory does not suffice."""

from __future__ import annotations

import ctypes
import gc
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import torch
from accelerate import Accelerator
from torch import nn

from llamafarm_tuners.pytorch._random import Generators

_WORDS: Final = (
    "can't allocate memory",
    "not enough memory",
    "bad allocation",
    "std::bad_alloc",
    "out of memory",
    "could not create a primitive",
    "could not create a memory",
)  # so oneDNN puts it


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory: of an accelerator, or of the process."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


Compute = Callable[[Sequence[int], Callable[[], None]], None]


class TogetherOutOfMemoryError(MemoryError):
    """A step's gradient did not fit into the memory of one of several processes; all of them know, and may go on."""


class MicroBatch:
    """How many rows go through the model at a time: a part of the training state.

    A step's rows, and what they weigh, do not depend on it: the loss is a sum over tokens, divided by the number of all
    targets of the step.

    Attributes:
        limit: Most rows at a time; None: as many as a micro-step has.
        eval_limit: The same for evaluations.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self.eval_limit: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know."""
        return {"limit": self.limit, "eval_limit": self.eval_limit}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.limit, self.eval_limit = state["limit"], state["eval_limit"]

    def parts(self, micro_steps: Sequence[Sequence[int]]) -> list[list[int]]:
        """A step's rows in parts that go through the model one after the other; in their order."""
        if self.limit is None:
            return [list(rows) for rows in micro_steps]
        rows = [row for some in micro_steps for row in some]
        return [rows[start : start + self.limit] for start in range(0, len(rows), self.limit)] or [[]]

    def halve(self, rows: int) -> bool:
        """Take half of `rows` at a time from now on; False if it is one already."""
        if rows <= 1:
            return False
        self.limit = rows // 2
        return True

    def eval_rows(self, batch_size: int) -> int:
        """How many rows are evaluated at a time."""
        return min(batch_size, self.eval_limit or batch_size)

    def halve_eval(self, rows: int) -> bool:
        """Evaluate half of `rows` at a time from now on; False if it is one already."""
        if rows <= 1:
            return False
        self.eval_limit = rows // 2
        return True


class Attempt:
    """What is needed to take a step again, as if it had not been tried: generators, and an untouched optimizer.

    Optimizers make their state at the first step, and change weights one after the other: when memory runs out between
    two of them, the step can neither be taken back nor taken again.
    """

    def __init__(self, accelerator: Accelerator, optimizer: Any) -> None:
        self.generators = Generators(accelerator.device)
        self._accelerator = accelerator
        self._optimizer = getattr(optimizer, "optimizer", optimizer)
        self._versions: list[tuple[torch.Tensor, int]] = []
        self._known: set[int] = set()
        self.updating = False

    def update(self) -> None:
        """Say that the optimizer changes the weights from here on."""
        state = self._optimizer.state
        self._known = {id(parameter) for parameter in state}
        kept = [tensor for entry in state.values() for tensor in entry.values() if isinstance(tensor, torch.Tensor)]
        self._versions = [(tensor, tensor._version) for tensor in [*self._parameters(), *kept]]  # noqa: SLF001  # torch's own word for it
        self.updating = True

    def undo(self, error: BaseException) -> bool:
        """Clear everything away, what the error's frames hold too; False if the weights have been touched."""
        traceback.clear_frames(error.__traceback__)
        self._optimizer.zero_grad(set_to_none=True)
        if self.updating:
            # the library's kernels write through pointers, which no version tells
            foreign = type(self._optimizer).__module__.partition(".")[0] != "torch"
            if foreign or any(tensor._version != version for tensor, version in self._versions):  # noqa: SLF001
                return False
            for parameter in [parameter for parameter in self._optimizer.state if id(parameter) not in self._known]:
                del self._optimizer.state[parameter]
        scaler = self._accelerator.scaler
        if scaler is not None:
            scaler._per_optimizer_states.clear()  # noqa: SLF001  # it takes no second unscale_ between two updates
        self.generators.restore()
        free(self._accelerator.device)
        return True

    def _parameters(self) -> Iterator[torch.Tensor]:
        return (parameter for group in self._optimizer.param_groups for parameter in group["params"])


def free(device: torch.device) -> None:
    """Give back what nobody uses."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc keeps what is freed; other libraries have no such word
        ctypes.CDLL(None).malloc_trim(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()


def find_micro_batch(
    model: nn.Module, device: torch.device, rows: Sequence[int], compute: Compute, moments: int = 2
) -> int | None:
    """Try how many rows a forward and backward pass takes, beside the optimizer's state that is still to come.

    Args:
        model: On its device; its gradients are cleared, its buffers and the generators are put back.
        device: Where it is.
        rows: The longest rows, as many as a step has on this device, the longest first.
        compute: Loss and gradients of rows, after calling what is given besides; with several processes, where one has
            not enough memory, none has.
        moments: Values of state for each trained one that the optimizer will keep on the device.

    Returns:
        The number of rows; None if not even one fits.
    """
    generators = Generators(device)
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    sizes = [*_halves(len(rows))]
    try:
        for size in sizes:
            if _fits(model, device, rows[:size], compute, moments):
                return size
        return None
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        generators.restore()
        free(device)


def _fits(model: nn.Module, device: torch.device, rows: Sequence[int], compute: Compute, moments: int) -> bool:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    reserved: list[torch.Tensor] = []

    def reserve() -> None:
        # what AdamW will take, so that the first update does not fail
        reserved.extend(torch.zeros_like(parameter) for parameter in trained for _ in range(moments))

    try:
        compute(rows, reserve)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    else:
        fits = True
    reserved.clear()
    model.zero_grad(set_to_none=True)
    free(device)
    return fits


def _halves(size: int) -> Iterator[int]:
    while size:
        yield size
        size //= 2
