"""`training` in LLaMA-Factory's words."""

from __future__ import annotations

from typing import Any

from llamafarm.api import TrainingConfig

NEVER = 999_999
"""Intervals from here on mean: not at all."""

_SAME = (
    "gradient_accumulation_steps", "max_steps", "learning_rate", "lr_scheduler_type", "optim", "adam_beta1",
    "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "logging_steps", "logging_first_step", "fp16",
    "bf16", "dataloader_num_workers", "dataloader_pin_memory", "seed", "save_total_limit",
)  # fmt: skip


def training_arguments(training: TrainingConfig, *, held_out: bool, device: str) -> dict[str, Any]:
    """The arguments.

    Args:
        training: The configuration.
        held_out: Whether there are rows to evaluate on.
        device: torch's device type.
    """
    found: dict[str, Any] = {name: getattr(training, name) for name in _SAME}
    found |= {
        "per_device_train_batch_size": training.batch_size,
        "num_train_epochs": training.num_epochs,
        "cutoff_len": training.max_seq_length,
        "disable_gradient_checkpointing": not training.gradient_checkpointing,
        "report_to": "none",
    }
    if training.global_batch_size:
        found["gradient_accumulation_steps"] = max(1, training.global_batch_size // training.batch_size)
    found |= (
        {"warmup_steps": training.warmup_steps} if training.warmup_steps else {"warmup_ratio": training.warmup_ratio}
    )
    if training.group_by_length:
        found["train_sampling_strategy"] = "group_by_length"
    if training.data_seed is not None:
        found["data_seed"] = training.data_seed
    if device == "cpu":
        found |= {"use_cpu": True, "dataloader_pin_memory": False}
    if training.tf32 and device == "cuda":
        found["tf32"] = True
    if training.pure_bf16:
        found["pure_bf16"] = True
    found |= _interval("save", training.save_strategy, training.save_steps)
    if held_out:
        found |= _evaluation(training)
    return found


def _evaluation(training: TrainingConfig) -> dict[str, Any]:
    found = _interval("eval", *training.eval_interval)
    found |= {"do_eval": True, "per_device_eval_batch_size": training.per_device_eval_batch_size or training.batch_size}
    if training.load_best_model_at_end or training.early_stopping:
        metric = training.metric_for_best_model
        found["metric_for_best_model"] = metric if metric.startswith("eval_") else f"eval_{metric}"
        if training.greater_is_better is not None:
            found["greater_is_better"] = training.greater_is_better
    if training.load_best_model_at_end:
        found["load_best_model_at_end"] = True
    if training.early_stopping:
        found["early_stopping_steps"] = training.early_stopping_patience
    if training.compute_metrics:
        found["compute_accuracy"] = True
    if training.eval_accumulation_steps is not None:
        found["eval_accumulation_steps"] = training.eval_accumulation_steps
    return found


def _interval(what: str, strategy: str, steps: int) -> dict[str, Any]:
    if strategy == "steps" and steps < 0:
        strategy = "epoch"
    if strategy == "no" or (strategy == "steps" and steps >= NEVER):
        return {f"{what}_strategy": "no"}
    return (
        {f"{what}_strategy": "epoch"} if strategy == "epoch" else {f"{what}_strategy": "steps", f"{what}_steps": steps}
    )
