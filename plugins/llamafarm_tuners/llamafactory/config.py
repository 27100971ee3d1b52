"""LLaMA-Factory's argument names, beside the configuration that all fine-tuners share."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field

from llamafarm.api import FineTunerConfig, TrainingConfig
from llamafarm.api.config import Count, Fraction, NonNegative

ADAPTER_KEYS = frozenset(
    {
        "finetuning_type", "lora_rank", "lora_alpha", "lora_dropout", "lora_target", "quantization_bit",
        "double_quantization", "use_dora", "use_rslora", "freeze_trainable_layers", "freeze_trainable_modules",
        "freeze_extra_modules",
    }
)  # fmt: skip
"""Fields that say how parameters are adapted: with one of them, `method` is not needed, and LLaMA-Factory's own
defaults hold for the others."""

NATIVE = (
    "additional_target", "loraplus_lr_ratio", "loraplus_lr_embedding", "pissa_init", "pissa_iter", "pissa_convert",
    "module_dropout", "oft_rank", "oft_block_size", "oft_target",
    "pref_beta", "pref_ftx", "pref_bco_weight", "pref_loss", "dpo_label_smoothing", "kto_chosen_weight",
    "kto_rejected_weight", "simpo_gamma", "ld_alpha",
    "use_galore", "galore_target", "galore_rank", "galore_update_interval", "galore_scale", "galore_proj_type",
    "galore_layerwise", "use_apollo", "apollo_target", "apollo_rank", "use_badam", "badam_mode", "use_llama_pro",
    "use_adam_mini", "use_muon", "use_dft_loss", "use_asft_loss", "asft_alpha", "use_eaft_loss", "eaft_alpha",
    "compute_accuracy", "disable_shuffling", "early_stopping_steps", "plot_loss",
    "include_effective_tokens_per_second", "mask_history", "overwrite_cache", "preprocessing_batch_size",
    "preprocessing_num_workers", "val_size", "default_system", "enable_thinking", "ignore_pad_token_for_loss",
    "use_fast_tokenizer", "resize_vocab", "split_special_tokens", "add_tokens", "add_special_tokens", "rope_scaling",
    "flash_attn", "shift_attn", "mixture_of_depths", "use_unsloth_gc", "enable_liger_kernel", "moe_aux_loss_coef",
    "disable_gradient_checkpointing", "use_reentrant_gc", "upcast_lmhead_output", "quantization_method",
    "quantization_type", "neftune_noise_alpha", "ddp_timeout", "save_only_model", "label_smoothing_factor",
    "include_num_input_tokens_seen", "do_train", "do_eval",
    "ppo_buffer_size", "ppo_epochs", "ppo_score_norm", "ppo_target", "ppo_whiten_rewards", "reward_model_type",
    "max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty",
)  # fmt: skip
"""Arguments of LLaMA-Factory that stand in the configuration under their own names."""

_TRAINING = {
    name: f"training.{TrainingConfig.aliases.get(name, name)}"
    for name in (*TrainingConfig.model_fields, *TrainingConfig.aliases)
    if name not in {"stage", "packing", "neat_packing", "resume_from_checkpoint"}
}


class LlamaFactoryConfig(FineTunerConfig):
    """Options of LLaMA-Factory as it spells them."""

    aliases = MappingProxyType(
        {
            **{name: f"arguments.{name}" for name in NATIVE},
            **_TRAINING,
            **FineTunerConfig.aliases,
            "lora_modules": "lora_target",
            "dataset_dir": "dataset.dataset_dir",
            "max_samples": "dataset.max_samples",
            "train_on_prompt": "dataset.train_on_inputs",
            "model_revision": "base_model.revision",
            "cache_dir": "base_model.cache_dir",
            "trust_remote_code": "base_model.trust_remote_code",
            "hf_hub_token": "base_model.token",
        }
    )

    stage: Literal["sft", "pt", "rm", "ppo", "dpo", "kto"] | None = Field(
        None, description="Training stage; default: training.stage."
    )
    finetuning_type: Literal["lora", "qlora", "full", "freeze", "oft"] | None = Field(
        None, description="How parameters are adapted, instead of `method`; `qlora` means lora on a base in 4 bits."
    )
    template: str | None = Field(
        None, description="Chat template by LLaMA-Factory's name; default: the tokenizer's own."
    )
    quantization_bit: Literal[4, 8] | None = Field(None, description="Load the frozen base in 4 or 8 bits.")
    double_quantization: bool | None = Field(None, description="Quantize the quantization constants too.")
    lora_rank: Count | None = Field(None, description="Rank; LLaMA-Factory's default is 8.")
    lora_alpha: NonNegative | None = Field(None, description="Scale; default twice the rank.")
    lora_dropout: Fraction | None = Field(None, description="Dropout before the adapter.")
    lora_target: str | None = Field(None, description="Modules to adapt, separated by commas, or `all`.")
    use_dora: bool | None = Field(None, description="Learn magnitudes beside directions.")
    use_rslora: bool | None = Field(None, description="Scale by alpha / sqrt(rank).")
    freeze_trainable_layers: int | None = Field(None, description="Layers to train: the last n, or first n if below 0.")
    freeze_trainable_modules: str | None = Field(None, description="Modules of those layers, or `all`.")
    freeze_extra_modules: str | None = Field(None, description="Modules outside the layers to train.")
    packing: bool | None = Field(None, description="Put several rows into one sequence, which see one another.")
    neat_packing: bool | None = Field(None, description="Pack without attention across rows.")
    upcast_layernorm: bool | None = Field(None, description="Keep normalization weights in fp32.")
    use_unsloth: bool | None = Field(None, description="Use the unsloth kernels.")
    reward_model: str | None = Field(
        None, description="What judges answers in stage ppo: the output folder of a run with stage rm."
    )
    resume_from_checkpoint: str | None = Field(
        None, description="Folder of a checkpoint of an earlier run to go on from, in a new output_dir."
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of LLaMA-Factory by its own names."
    )
