"""What of a configuration may change when a run is resumed: one table, and the difference between two runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, Final

from llamafarm.core.canonical import TUNER
from llamafarm.core.explain import explain
from llamafarm.core.layers import dotted
from llamafarm.core.load import Loaded


class Change(Enum):
    """What a changed setting means for a run that goes on."""

    FREE = "free"
    """The trained weights do not depend on it."""

    FLAG = "with --allow-changes"
    """The run can go on, but ends otherwise than without interruption."""

    NEVER = "never"
    """What was trained so far would not be what the configuration says."""


# Where a file of rows is does not matter: what is in it does, and is compared by digest.
_FREE: Final = """
name description version notes use_cases plugins defaults optimization export components.hardware
output_dir overwrite_output_dir
evaluation.exact_match evaluation.max_samples evaluation.max_new_tokens evaluation.batch_size evaluation.baseline
base_model.cache_dir base_model.device_map base_model.trust_remote_code base_model.token
dataset.path dataset.eval_path dataset.dataset_dir
dataset.cache dataset.max_token_loss dataset.mask_audit
training.resume_from_checkpoint
training.save_strategy training.save_steps training.save_total_limit
training.logging_steps training.logging_first_step training.report_to
training.per_device_eval_batch_size training.eval_accumulation_steps
training.length_column_name training.use_ipex training.dataloader_num_workers training.dataloader_pin_memory
training.heartbeat_timeout
training.push_to_hub training.hub_model_id training.hub_strategy training.hub_token
"""

_FLAG: Final = """
base_model.attn_implementation
training.max_steps training.num_epochs
training.learning_rate training.lr_scheduler_type training.warmup_ratio training.warmup_steps
training.adam_beta1 training.adam_beta2 training.adam_epsilon training.weight_decay training.max_grad_norm
training.gradient_checkpointing
training.eval_strategy training.eval_steps training.compute_metrics
training.early_stopping training.early_stopping_patience training.early_stopping_threshold
training.load_best_model_at_end training.metric_for_best_model training.greater_is_better
training.fp16 training.bf16 training.tf32 training.use_flash_attention training.use_cpu_offload
training.fused training.use_liger_kernel training.activation_offloading
training.guard training.auto_find_batch_size training.on_out_of_memory
training.disable_cudnn_sdpa training.disable_flash_sdpa training.torch_compile training.torch_compile_backend
"""

_NEVER: Final = """
components.fine_tuner.type components.data_splitter
method
base_model.huggingface_id base_model.revision base_model.from_scratch base_model.torch_dtype
base_model.load_in_8bit base_model.load_in_4bit
base_model.add_pad_token base_model.add_chatml_tokens base_model.add_chatml_prompt_template
base_model.template base_model.resize_to_multiple_of
dataset.subset dataset.generate dataset.format dataset.columns dataset.text_field
dataset.sources dataset.sample_seed dataset.max_samples dataset.filters dataset.over_long
dataset.train_on_inputs dataset.split_special_tokens dataset.prefix_ids dataset.suffix_ids
training.stage training.max_seq_length training.batch_size training.gradient_accumulation_steps
training.group_by_length training.curriculum training.packing training.packing_length
training.global_batch_size training.pure_bf16
training.optim training.seed training.data_seed
"""

CONTRACT: Final[Mapping[str, Change]] = MappingProxyType(
    {
        key: change
        for change, keys in ((Change.FREE, _FREE), (Change.FLAG, _FLAG), (Change.NEVER, _NEVER))
        for key in keys.split()
    }
)
"""Setting, below the fine-tuner's configuration, or block → its class. A block speaks for all in it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting that is not what it was.

    Attributes:
        key: The setting.
        before: Its value then.
        after: Its value now.
        change: What that means.
    """

    key: str
    before: Any
    after: Any
    change: Change

    def __str__(self) -> str:
        return f"{self.key} was {self.before!r} and is {self.after!r}"


def class_of(key: str) -> Change:
    """The class of a setting: its own, or that of the nearest block; what the table does not know may not change."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        found = CONTRACT.get(".".join(parts[:length]))
        if found is not None:
            return found
    return Change.NEVER


def settings(loaded: Loaded) -> dict[str, Any]:
    """Every setting of a strategy, flat, secrets left out: what is compared."""
    prefix = f"{dotted(TUNER)}."
    return {item.key.removeprefix(prefix): item.value for item in explain(loaded)}


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """Every setting that differs, in the order of the configuration."""
    keys = [*after, *(key for key in before if key not in after)]
    return [
        Difference(key, before.get(key), after.get(key), class_of(key))
        for key in keys
        if before.get(key) != after.get(key)
    ]
