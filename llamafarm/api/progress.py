"""What a method sees of a training: the rows before the first step, and each step that was taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class TrainingStart:
    """What a method finds before the first step.

    Attributes:
        steps: Optimizer steps that are planned.
        batches: Makes batches of training rows: `batches(size)` yields them all once, `size` rows at a time, in an
            order that depends on the seed alone and is the same on all processes. Each is what the model is called
            with (`input_ids`, `attention_mask`: shape (rows, length), padded on the right, on the model's device), and
            `labels` of the same shape: each token's id, or -100 where it is not learned.
    """

    steps: int
    batches: Callable[[int], Iterator[Mapping[str, torch.Tensor]]]


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """An optimizer step that was just taken; the gradients it was taken with are still in the parameters.

    Attributes:
        step: Its number; the first is 1.
        steps: Optimizer steps that are planned.
        optimizer: With its state, not wrapped. A method that gives a parameter another shape (in place: `.data`) brings
            the state to that shape as well.
        save: Writes the model as it is, as a result is written, into a folder of this name in the run's folder.
    """

    step: int
    steps: int
    optimizer: Any
    save: Callable[[str], None]
