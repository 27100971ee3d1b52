"""Settings that are accepted and change nothing here: each is said, none is dropped in silence. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from llamafarm.api import NO_EFFECT, Decision, RunPlan
from llamafarm.api.launch import world_size
from llamafarm.models.locate import locate
from llamafarm_tuners.pytorch.config import PytorchConfig
from llamafarm_tuners.pytorch.schedule import happens


def idle_settings(config: PytorchConfig, plan: RunPlan) -> Iterator[Decision]:
    """A decision for each setting that was written down, also in a device block, and has no effect in this combination.

    What a profile suggests for all is left out.
    """
    blocks = {decision.subject for decision in plan.decisions if decision.reason.startswith("from ")}
    for path, idle, reason in _table(config, plan):
        given = path in plan.given or path in blocks or any(known.startswith(f"{path}.") for known in plan.given)
        if idle and given:
            yield Decision(path, NO_EFFECT, reason)


def _table(config: PytorchConfig, plan: RunPlan) -> Iterator[tuple[str, bool, str]]:
    training, evaluation = config.training, config.evaluation
    constant = training.lr_scheduler_type == "constant"
    early = training.early_stopping
    tracked = early or training.load_best_model_at_end
    adam = training.optim != "sgd"
    in_memory = "the batches are ready in memory"
    yield "training.num_epochs", training.max_steps > 0, "max_steps decides"
    yield (
        "training.warmup_ratio",
        constant or training.warmup_steps > 0,
        ("a constant rate does not warm up" if constant else "warmup_steps decides"),
    )
    yield "training.warmup_steps", constant, "a constant rate does not warm up; constant_with_warmup does"
    ratio_decides = not constant and training.warmup_steps == 0 and training.warmup_ratio > 0
    told = f"with 0 warmup_ratio {training.warmup_ratio:g} decides; warmup_ratio: 0 begins at the full rate"
    yield "training.warmup_steps", ratio_decides and "training.warmup_ratio" not in plan.given, told
    yield "training.eval_steps", training.eval_interval[0] != "steps", f"eval_strategy is {training.eval_strategy}"
    yield "training.save_steps", training.save_strategy != "steps", f"save_strategy is {training.save_strategy}"
    yield "training.eval_accumulation_steps", True, "evaluation keeps no predictions that would have to be moved"
    yield "training.early_stopping_patience", not early, "early_stopping is off"
    yield "training.early_stopping_threshold", not early, "early_stopping is off"
    yield "training.greater_is_better", not tracked, "only checkpoint-best follows the metric"
    yield "training.length_column_name", True, "lengths are counted in tokens"
    yield "training.packing_length", not training.packing, "packing is off"
    yield "training.torch_compile_backend", not training.torch_compile, "torch_compile is off"
    yield "training.use_ipex", training.use_ipex, "its optimizations are part of torch itself by now"
    yield "training.dataloader_num_workers", training.dataloader_num_workers > 0, in_memory
    yield "training.dataloader_pin_memory", plan.device.type != "cuda", f"with {plan.device.type} nothing is copied"
    yield "training.heartbeat_timeout", world_size() == 1, "there is one process"
    for name in ("hub_strategy", "hub_model_id", "hub_token"):
        yield f"training.{name}", not training.push_to_hub, "push_to_hub is off"
    unsaved = not happens(training.save_strategy, training.save_steps)
    yield "training.save_total_limit", unsaved, "no checkpoint-N is written but at a stop"
    yield "training.adam_beta1", not adam, "sgd has no such parameter"
    yield "training.adam_beta2", not adam, "sgd has no such parameter"
    yield "training.adam_epsilon", not adam, "sgd has no such parameter"
    base = config.base_model.huggingface_id
    from_hub = base is not None and locate(base).kind == "hub"
    for name in ("revision", "cache_dir", "token"):
        yield f"base_model.{name}", not from_hub, "the base does not come from the hub"
    for name in ("max_samples", "max_new_tokens", "batch_size", "baseline"):
        yield f"evaluation.{name}", not evaluation.exact_match, "exact_match is off"
