"""What to do about what goes wrong in training: the one table, printed on the event and quoted in docs/stability.md."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple


class Advice(NamedTuple):
    """A row of the table.

    Attributes:
        symptom: What is seen.
        remedies: What helps, the likeliest first.
    """

    symptom: str
    remedies: tuple[str, ...]


ADVICE: Final[Mapping[str, Advice]] = MappingProxyType(
    {
        "non-finite": Advice(
            "loss or gradient is NaN or Inf",
            (
                "lower learning_rate 10 times",
                "bf16 or fp32 instead of fp16",
                "disable_flash_sdpa: true or attn_implementation: eager",
                "look at the rows of the step",
            ),
        ),
        "zero-loss": Advice(
            "the loss is exactly 0",
            ("check that padding is not the end token", "look at the labels: llamafarm inspect"),
        ),
        "no-labels": Advice("a step has nothing to learn", ("look at the labels: llamafarm inspect",)),
        "spike": Advice(
            "the loss jumps far above the last steps",
            ("lower learning_rate", "warmup_ratio: 0.1", "look at the rows of the step"),
        ),
        "gradient-explosion": Advice(
            "the gradient's norm is far above what it was, or above grad_norm_max",
            ("lower learning_rate", "max_grad_norm: 0.5", "warmup_ratio: 0.1"),
        ),
        "gradient-vanishing": Advice(
            "the gradient's norm is below grad_norm_min",
            ("check that the method's target_modules are trained", "raise learning_rate", "look at the labels"),
        ),
        "rising-loss": Advice(
            "the loss rises over the last log entries", ("lower learning_rate", "longer warmup", "shuffled rows")
        ),
        "low-learning-rate": Advice(
            "the learning rate is very low, and not because its schedule ends", ("raise learning_rate",)
        ),
        "overfitting": Advice(
            "the training loss falls while the held-out loss rises",
            ("early_stopping: true", "fewer num_epochs", "dropout: 0.1, weight_decay, a smaller r", "more rows"),
        ),
        "underfitting": Advice(
            "the training loss hardly falls",
            ("raise learning_rate", "more num_epochs", "a larger r, more target_modules"),
        ),
        "out-of-memory": Advice(
            "the memory does not suffice",
            (
                "batch_size: 1 with gradient_accumulation_steps: 8 (the result of 8 rows a step is the same)",
                "gradient_checkpointing: true",
                "a smaller max_seq_length",
                "method: qlora",
            ),
        ),
        "slow": Advice(
            "training is slow",
            (
                "bf16: true where the device has it",
                "packing: true for short rows",
                "a larger batch_size",
                "a smaller r",
            ),
        ),
        "poor-results": Advice(
            "the answers are poor though the loss is low",
            (
                "compare with the base: evaluation.exact_match",
                "check the chat template: llamafarm inspect",
                "more rows",
            ),
        ),
    }
)


def advice(kind: str) -> str:
    """The remedies for an event in one sentence."""
    return "; ".join(ADVICE[kind].remedies)
