"""The state of every generator that training draws from: python, numpy, torch, and the accelerator's."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import torch
from accelerate import Accelerator

from llamafarm_tuners.pytorch.progress import PROGRESS

_LARGEST = 65_536
"""Bytes that one process' state may take; python's and numpy's are some 7,000 each, torch's 10,000."""


class Generators:
    """The state of this process' generators at an instant: quick to take, at every step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._python, self._torch = random.getstate(), torch.get_rng_state()
        self._numpy = _numpy().get_state() if "numpy" in sys.modules else None
        self._on_device = _module(device).get_rng_state() if device.type != "cpu" else None

    def restore(self) -> None:
        """Put them back."""
        random.setstate(self._python)
        torch.set_rng_state(self._torch)
        if self._numpy is not None:
            _numpy().set_state(self._numpy)
        if self._on_device is not None:
            _module(self._device).set_rng_state(self._on_device)


def random_states(accelerator: Accelerator) -> tuple[str, ...]:
    """The state of the generators of each process, as text, in the order of their ranks. All processes call it."""
    own = random_state(accelerator.device)
    if accelerator.num_processes == 1:
        return (own,)
    data = own.encode()
    assert len(data) <= _LARGEST
    padded = torch.zeros(1, _LARGEST, dtype=torch.uint8)
    padded[0, : len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    with PROGRESS.elsewhere():
        gathered: torch.Tensor = accelerator.gather(padded.to(accelerator.device)).cpu()
    return tuple(bytes(row.tolist()).rstrip(b"\0").decode() for row in gathered)


def set_random_state(state: str, device: torch.device) -> None:
    """Put the generators of this process back."""
    kept: dict[str, Any] = json.loads(state)
    version, words, gauss = kept["python"]
    random.setstate((version, tuple(words), gauss))
    torch.set_rng_state(_bytes(kept["torch"]))
    if "numpy" in kept:
        _numpy().set_state(_arrays(kept["numpy"]))
    if "device" in kept and kept["device"][0] == device.type:
        _module(device).set_rng_state(_bytes(kept["device"][1]))


def random_state(device: torch.device) -> str:
    """The state of this process' generators as text, for `set_random_state`."""
    kept: dict[str, Any] = {"python": random.getstate(), "torch": _text(torch.get_rng_state())}
    if "numpy" in sys.modules:
        state = _numpy().get_state(legacy=False)
        kept["numpy"] = state | {"state": {"key": state["state"]["key"].tolist(), "pos": int(state["state"]["pos"])}}
    if device.type != "cpu":
        kept["device"] = [device.type, _text(_module(device).get_rng_state())]
    return json.dumps(kept)


def _numpy() -> Any:
    import numpy as np

    return np.random


def _arrays(state: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    return state | {"state": {**state["state"], "key": np.array(state["state"]["key"], dtype=np.uint32)}}


def _module(device: torch.device) -> Any:
    return getattr(torch, device.type)


def _text(state: torch.Tensor) -> str:
    return bytes(state.cpu().tolist()).hex()


def _bytes(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
