"""A strategy → LLaMA-Factory's arguments: a pure function, and the only place where they are made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamafarm.api import RunPlan
from llamafarm.models.locate import locate
from llamafarm_tuners.llamafactory.adapter import adapter_arguments
from llamafarm_tuners.llamafactory.config import LlamaFactoryConfig
from llamafarm_tuners.llamafactory.hyperparameters import NEVER, training_arguments
from llamafarm_tuners.llamafactory.rows import EVAL, TRAIN, Form

OURS: Mapping[str, str] = {
    "model_name_or_path": "base_model.huggingface_id",
    "output_dir": "output_dir",
    "overwrite_output_dir": "overwrite_output_dir",
    "logging_dir": "training.report_to",
    "dataset": "dataset",
    "eval_dataset": "dataset.eval_path",
    "dataset_dir": "dataset.dataset_dir",
    "max_samples": "dataset.max_samples",
    "tokenized_path": "dataset.cache",
    "media_dir": "dataset",
    "mix_strategy": "dataset.sources",
    "interleave_probs": "dataset.sources",
    "streaming": "dataset",
    "report_to": "training.report_to",
    "trust_remote_code": "base_model.trust_remote_code",
    "hf_hub_token": "base_model.token",
    "hub_token": "training.hub_token",
    "push_to_hub": "training.push_to_hub",
    "resume_from_checkpoint": "resume_from_checkpoint",
    "adapter_name_or_path": "base_model",
    "stage": "stage",
    "deepspeed": "",
    "fsdp": "",
    "ray_num_workers": "",
    "use_swanlab": "",
    "use_mca": "",
    "do_predict": "",
    "predict_with_generate": "",
    "disable_tqdm": "",
}
"""Arguments that LlamaFarm sets itself → the key of ours that says it; empty: not supported."""

_SWITCHES = {"do_train": True}
"""Arguments that a run of ours implies: accepted with this value, refused with another."""


def translate(
    config: LlamaFactoryConfig,
    plan: RunPlan,
    *,
    form: Form,
    held_out: bool,
    data: Path,
    output: Path,
    tokens: Path | None = None,
) -> dict[str, Any]:
    """The arguments of a run.

    Args:
        config: The configuration, which `check` has accepted.
        plan: The run's plan.
        form: What the rows need to be read rightly.
        held_out: Whether there are rows to evaluate on.
        data: Folder of the converted rows and `dataset_info.json`.
        output: Folder that LLaMA-Factory writes into.
        tokens: Folder of rows that are tokenized already; then it reads none of `data`.
    """
    base, training = config.base_model, config.training
    assert base.huggingface_id is not None, "the host refuses a strategy without a base model"
    located = locate(base.huggingface_id)
    adapter, _ = adapter_arguments(config, tuple(method.adapter() for method in plan.methods), "")
    found: dict[str, Any] = {
        "model_name_or_path": str(located.folder.absolute()) if located.folder else base.huggingface_id,
        "trust_remote_code": base.trust_remote_code,
        "stage": stage_of(config),
        "do_train": True,
        **adapter,
        "dataset_dir": str(data.absolute()),
        "dataset": TRAIN,
        **({"eval_dataset": EVAL} if held_out else {}),
        **training_arguments(training, held_out=held_out, device=plan.device.type),
        **_packing(config),
        "train_on_prompt": config.dataset.train_on_inputs,
        "plot_loss": True,
        "output_dir": str(output.absolute()),
        "overwrite_output_dir": False,
    }
    if base.revision:
        found["model_revision"] = base.revision
    if base.cache_dir:
        found["cache_dir"] = str(Path(base.cache_dir).expanduser().absolute())
    if tokens is not None:
        found["tokenized_path"] = str(tokens.absolute())
    if form.mask_history:
        found["mask_history"] = True
    for name in ("template", "upcast_layernorm", "use_unsloth"):
        if (value := getattr(config, name)) is not None:
            found[name] = value
    if kernel := _attention(config):
        found["flash_attn"] = kernel
    if stage_of(config) == "ppo":
        found |= _ppo(config)
    if config.resume_from_checkpoint:
        found["resume_from_checkpoint"] = str(Path(config.resume_from_checkpoint).expanduser().absolute())
    dropped = {*_SWITCHES, *(("val_size",) if held_out else ())}
    return found | {name: value for name, value in config.arguments.items() if name not in dropped}


def tokenizes_itself(config: LlamaFactoryConfig) -> str:
    """Why LLaMA-Factory reads the rows by its own template; empty: it is given our tokens and labels."""
    if stage_of(config) not in ("sft", "pt"):
        return f"stage {stage_of(config)}"
    if config.template:
        return f"template: {config.template}"
    if config.packing or config.neat_packing or config.training.packing:
        return "packing"
    return ", ".join(name for name in sorted(config.arguments) if name in _OF_ITS_TEMPLATE)


_OF_ITS_TEMPLATE = frozenset(
    {"default_system", "enable_thinking", "preserve_thinking", "mask_history", "tool_format", "val_size", "packing"}
    | {"split_special_tokens", "add_tokens", "add_special_tokens", "use_fast_tokenizer", "resize_vocab", "neat_packing"}
)


def stage_of(config: LlamaFactoryConfig) -> str:
    """The stage: LLaMA-Factory's key, else the training's."""
    return config.stage or config.training.stage


def _ppo(config: LlamaFactoryConfig) -> dict[str, Any]:
    """What judges, by which weights; and when to save, which this stage does by steps alone."""
    found: dict[str, Any] = {}
    if config.reward_model and (folder := Path(config.reward_model).expanduser()).is_dir():
        lora = (folder / "adapter_config.json").is_file()
        found |= {"reward_model": str(folder.absolute()), "reward_model_type": "lora" if lora else "full"}
    elif config.reward_model:
        found["reward_model"] = config.reward_model
    if config.training.save_strategy != "steps" or config.training.save_steps < 0:
        found |= {"save_strategy": "steps", "save_steps": NEVER}
    return found


def _packing(config: LlamaFactoryConfig) -> dict[str, Any]:
    """Ours isolates rows from one another, which LLaMA-Factory calls neat."""
    ours = config.training.packing
    neat = config.neat_packing if config.neat_packing is not None else ours and config.packing is None
    packing = config.packing if config.packing is not None else ours or neat
    return {"packing": bool(packing), "neat_packing": bool(neat)}


def _attention(config: LlamaFactoryConfig) -> str:
    if config.training.use_flash_attention:
        return "fa2"
    names = {"eager": "disabled", "sdpa": "sdpa", "flash_attention_2": "fa2"}
    return names.get(config.base_model.attn_implementation, "")
