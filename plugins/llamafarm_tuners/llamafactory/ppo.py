"""What can be said about stage ppo before it is started: what judges, on which model, and what the stage lacks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from llamafarm.api import Decision, RunPlan
from llamafarm.errors import Problem
from llamafarm.models.locate import locate
from llamafarm_tuners.llamafactory.config import LlamaFactoryConfig

_HEADS = ("value_head.safetensors", "value_head.bin")
_TRAIN_ONE = "train one with stage: rm, and name its output folder"


def check_ppo(config: LlamaFactoryConfig, plan: RunPlan) -> Iterator[Problem | Decision]:
    """Everything to refuse or explain."""
    yield from _reward_model(config, plan)
    name = config.base_model.huggingface_id or ""
    if locate(name).kind == "hub":
        message = (
            f"stage ppo runs in LLaMA-Factory 0.9.3, for which a model is put into older words: {name} is no folder"
        )
        hint = f"download it, hf download {name} --local-dir FOLDER, and name the folder"
        yield Problem("LF-STRATEGY-101", message, plan.given.get("base_model.huggingface_id", ""), hint)
    if plan.resume is not None or config.resume_from_checkpoint:
        where = plan.given.get("resume_from_checkpoint", "")
        message = "stage ppo: LLaMA-Factory does not go on from a checkpoint of this stage"
        yield Problem("LF-STRATEGY-083", message, where, "start a new run, with --overwrite")
    training = config.training
    refused = {
        "training.packing": training.packing,
        "training.group_by_length": training.group_by_length,
        "training.early_stopping": training.early_stopping,
        "training.compute_metrics": training.compute_metrics,
        "training.eval_strategy": training.eval_strategy not in ("no", "auto"),
        "training.eval_steps": training.eval_strategy == "auto" and training.eval_steps is not None,
        "training.save_strategy": training.save_strategy == "epoch",
    }
    for path, on in refused.items():
        if on and path in plan.given:
            what = path.removeprefix("training.")
            message = f"stage ppo: LLaMA-Factory has no {what} there" if what != "save_strategy" else ""
            message = message or "stage ppo: LLaMA-Factory saves at steps alone"
            yield Problem("LF-STRATEGY-083", message, plan.given[path], "leave it out")
    yield Decision(
        "stage ppo", "answers of its own", "the last answers of the rows are not learned; their prompts are asked"
    )


def _reward_model(config: LlamaFactoryConfig, plan: RunPlan) -> Iterator[Problem]:
    where = plan.given.get("reward_model", plan.given.get("stage", ""))
    given = config.reward_model
    if not given:
        yield Problem("LF-STRATEGY-100", "stage ppo needs reward_model, which judges the answers", where, _TRAIN_ONE)
        return
    if config.arguments.get("reward_model_type") == "api":
        return
    folder = Path(given).expanduser()
    if not any((folder / head).is_file() for head in _HEADS):
        message = f"reward_model: {given} is no reward model: it has no {_HEADS[0]}"
        yield Problem("LF-STRATEGY-100", message, where, _TRAIN_ONE)
        return
    described = folder / "adapter_config.json"
    if not described.is_file():
        return
    base = str(json.loads(described.read_text(encoding="utf-8")).get("base_model_name_or_path"))
    if locate(base).source != locate(config.base_model.huggingface_id or "").source:
        message = f"reward_model: {given} is an adapter for {base}, and the base here is another"
        yield Problem("LF-STRATEGY-100", message, where, "train it on the same base, or with finetuning_type: full")
