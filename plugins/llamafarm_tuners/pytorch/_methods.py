"""The methods of a run while it trains: what they look at, add to the loss, do after a step, and keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from llamafarm.api import Method, RunContext, TrainingConfig, TrainingStart, TrainingStep
from llamafarm.data.stored import in_order, lengths_of
from llamafarm_tuners.pytorch._batches import TokenRow, epoch_order, padded


class Methods:
    """A stack of methods on its model; their state is a part of the training state.

    Attributes:
        model: With the methods applied; not wrapped.
    """

    def __init__(self, model: nn.Module, methods: Sequence[Method[Any]], run: RunContext) -> None:
        self.model = model
        self._methods, self._run = methods, run

    def begin(self, rows: Sequence[TokenRow], pad_token_id: int, training: TrainingConfig, steps: int) -> None:
        """Let them look at the rows, on the device where the model is."""
        seed = training.seed if training.data_seed is None else training.data_seed
        order = epoch_order(lengths_of(rows), seed, 0, 1)
        device = next(self.model.parameters()).device
        start = TrainingStart(steps, partial(_batches, in_order(rows, order), pad_token_id, device))
        for method in self._methods:
            method.begin(self.model, start, self._run)

    def penalty(self) -> torch.Tensor | None:
        """The terms that they add to a step's mean loss, together."""
        terms = [term for method in self._methods if (term := method.penalty(self.model)) is not None]
        return torch.stack(terms).sum() if terms else None

    def stepped(self, step: int, steps: int, optimizer: Any, save: Callable[[str], None]) -> None:
        """A step was taken, and its gradients are still there."""
        taken = TrainingStep(step, steps, getattr(optimizer, "optimizer", optimizer), save)
        for method in self._methods:
            method.stepped(self.model, taken, self._run)

    def state_dict(self) -> dict[str, Any]:
        """What they keep beyond the weights, by method."""
        return {method.name: state for method in self._methods if (state := method.state(self.model))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; the weights are put in afterwards."""
        for method in self._methods:
            if method.name in state:
                method.load_state(self.model, state[method.name])


def _batches(
    rows: Sequence[TokenRow], pad_token_id: int, device: torch.device, size: int
) -> Iterator[Mapping[str, torch.Tensor]]:
    for first in range(0, len(rows), size):
        batch = padded(rows[first : first + size], pad_token_id).to(device)
        labels = batch.targets.roll(1, dims=1)  # targets stand one place before the tokens that they are
        yield {**batch.inputs, "labels": labels}
