"""An optimizer in main memory: its state, a float32 copy of what it trains, and its arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn

PART = 2**26
"""Bytes of parameters that are on their way, or being updated, at a time."""
_MASTER = "master"


class _Pair(NamedTuple):
    """A parameter.

    Attributes:
        device: As the model has it.
        host: In float32 in main memory, pinned if the model is on a GPU.
    """

    device: nn.Parameter
    host: nn.Parameter


class _Arriving(NamedTuple):
    """Gradients on their way to main memory.

    Attributes:
        part: Whose they are.
        gradients: Of each of them; None: it has none.
        wait: Returns when all are there.
    """

    part: Sequence[_Pair]
    gradients: Sequence[torch.Tensor | None]
    wait: Callable[[], object]


class HostOptimizer(torch.optim.Optimizer):  # type: ignore[misc]  # torch does not type it
    """Keeps an optimizer's state in main memory and computes its steps there; the device has weights and gradients.

    Parameters go through in parts: while one is updated, the gradients of the next and the new weights of the last are
    on their way, in a stream of their own. A parameter that is not float32 on the device keeps its float32 copy, so
    that small updates add up; of a float32 one the copy is nothing of its own, and the state that is saved is the one
    that the same optimizer would have on the device.

    Whatever changes parameters between steps by torch's operations, or gives them another memory, is noticed.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        build: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        part: int = PART,
    ) -> None:
        """Make the copies.

        Args:
            groups: Parameters on their device with their settings, as every optimizer takes them.
            build: Makes the optimizer over the same groups in main memory.
            part: Bytes of a part.
        """
        pairs = [[_Pair(parameter, _on_host(parameter)) for parameter in group["params"]] for group in groups]
        hosted = [[pair.host for pair in some] for some in pairs]
        self._inner = build([{**group, "params": params} for group, params in zip(groups, hosted, strict=True)])
        settings = [_settings(group) for group in self._inner.param_groups]
        mine = [[pair.device for pair in some] for some in pairs]
        super().__init__([{**s, "params": p} for s, p in zip(settings, mine, strict=True)], self._inner.defaults)
        self._pairs = [pair for some in pairs for pair in some]
        self._parts = list(_parts(self._pairs, part))
        self._seen: dict[nn.Parameter, tuple[int, int]] = {}
        on_gpu = self._pairs[0].device.is_cuda
        self._stream = torch.cuda.Stream(self._pairs[0].device.device) if on_gpu else None

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update all parameters that have gradients."""
        assert closure is None, "gradients are there already"
        self._pass_settings_on()
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        arriving = self._fetch(self._parts[0])
        for _, following in pairwise([*self._parts, None]):
            here, arriving = arriving, self._fetch(following or ())
            self._update(here)
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def _fetch(self, part: Sequence[_Pair]) -> _Arriving:
        """Send gradients to main memory, and parameters that somebody else has changed."""
        with torch.no_grad(), self._copying():
            for pair in part:
                if self._seen.get(pair.device) != _mark(pair.device):
                    pair.host.copy_(pair.device, non_blocking=True)
            gradients = [None if pair.device.grad is None else _sent(pair.device.grad) for pair in part]
        if self._stream is None:
            return _Arriving(part, gradients, _nothing)
        return _Arriving(part, gradients, self._stream.record_event().synchronize)

    def _update(self, arriving: _Arriving) -> None:
        """Compute new parameters once the gradients are there, and send them to the device."""
        arriving.wait()
        for pair, gradient in zip(arriving.part, arriving.gradients, strict=True):
            pair.host.grad = gradient
        self._inner.step()  # leaves out what has no gradient: all other parts
        with torch.no_grad(), self._copying():
            for pair in arriving.part:
                if pair.host.grad is not None:
                    pair.device.copy_(pair.host, non_blocking=True)
                pair.host.grad = None
                self._seen[pair.device] = _mark(pair.device)

    def _copying(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _pass_settings_on(self) -> None:
        """Learning rates are set here, from outside."""
        for mine, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            inner.update(_settings(mine))

    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer in main memory, with the float32 copies of parameters that are not float32."""
        self._pass_settings_on()
        state = self._inner.state_dict()
        entries = {
            index: entry | ({_MASTER: pair.host.detach()} if _keeps_master(pair) else {})
            for index, pair in enumerate(self._pairs)
            if (entry := state["state"].get(index)) is not None
        }
        return {**state, "state": entries}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; the parameters themselves have been put back before."""
        entries = {
            index: {name: value for name, value in entry.items() if name != _MASTER}
            for index, entry in state_dict["state"].items()
        }
        fused = self._inner.defaults.get("fused")
        self._inner.load_state_dict({**state_dict, "state": entries})
        for mine, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            mine.update(_settings(inner) | ({} if fused is None else {"fused": fused}))
        self._seen.clear()
        for index, pair in enumerate(self._pairs):
            master = state_dict["state"].get(index, {}).get(_MASTER)
            if master is not None and _keeps_master(pair):
                pair.host.data.copy_(master)
                self._seen[pair.device] = _mark(pair.device)


def _on_host(parameter: nn.Parameter) -> nn.Parameter:
    """Room for its copy, which is filled when it is needed."""
    pinned = parameter.is_cuda
    return nn.Parameter(torch.empty(parameter.shape, dtype=torch.float32, device="cpu", pin_memory=pinned))


def _sent(gradient: torch.Tensor) -> torch.Tensor:
    """A copy in main memory in float32, maybe still on its way."""
    there = torch.empty(gradient.shape, dtype=torch.float32, device="cpu", pin_memory=gradient.is_cuda)
    return there.copy_(gradient, non_blocking=True)


def _mark(parameter: nn.Parameter) -> tuple[int, int]:
    """Another one as soon as its values are."""
    return parameter._version, parameter.data_ptr()  # noqa: SLF001  # torch's own word for it


def _keeps_master(pair: _Pair) -> bool:
    return bool(pair.device.dtype != torch.float32)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _parts(pairs: Sequence[_Pair], size: int) -> Iterator[list[_Pair]]:
    """The parameters in order, in parts of at least `size` bytes; the last may be smaller."""
    part: list[_Pair] = []
    for pair in pairs:
        part.append(pair)
        if sum(each.host.nbytes for each in part) >= size:
            yield part
            part = []
    if part:
        yield part


def _nothing() -> None:
    """What is here need not be waited for."""
