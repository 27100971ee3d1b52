"""Pydantic bases of every configuration, and the configuration that all fine-tuners share.

YAML names are the documented ones; library spellings are `aliases`, resolved once at the edge (`core.canonical`), so
that past validation only the names below exist. An alias may point into a nested block (`base_model.huggingface_id`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema


class Config(BaseModel):
    """Base of all configurations: frozen, unknown keys are errors, secrets never echo in messages.

    Attributes:
        aliases: Other spellings accepted at the edge → the field's name, or a dotted path below this block.
        shorthand: The field that a bare scalar stands for: `base_model: NAME` means `{huggingface_id: NAME}`.
        exclusive: Fields of which at most one is set; a stronger layer's choice removes a weaker one's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, protected_namespaces=())

    aliases: ClassVar[Mapping[str, str]] = MappingProxyType({})
    shorthand: ClassVar[str] = ""
    exclusive: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The class's schema with its aliases as deprecated keys, and its shorthand as a plain text."""
        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        properties = schema.setdefault("properties", {})
        for alias, target in cls.aliases.items():
            field = properties.get(target, {})
            kept = {key: value for key, value in field.items() if key not in ("title", "default", "description")}
            properties[alias] = {**kept, "description": f"Other spelling of `{target}`.", "deprecated": True}
        if cls.shorthand and "anyOf" not in schema:
            whole = dict(schema)
            schema.clear()
            schema["anyOf"] = [{"type": "string", "description": f"Means `{cls.shorthand}`."}, whole]
        return reference


class NoConfig(Config):
    """For components without options."""


Fraction = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _named(value: str) -> str:
    if not value.strip():
        raise ValueError("it is empty; was a variable not set?")
    return value


Name = Annotated[str, AfterValidator(_named), WithJsonSchema({"type": "string", "minLength": 1})]
"""A path or a name: an empty one would be the working folder, with all that is in it."""


def _steps(value: int) -> int:
    if value == 0 or value < -1:
        raise ValueError(f"a number of steps, or -1, is expected, got {value}")
    return value


Steps = Annotated[
    int,
    AfterValidator(_steps),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "integer", "const": -1}]}),
]
"""A number of steps; what -1 means the field says."""

Texts = Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=str | tuple[str, ...])]
"""A list of texts; one alone needs no list."""

_Tracker = Literal["tensorboard", "none"]
_Trackers = tuple[_Tracker, ...]


class ScratchConfig(Config):
    """A model that starts from random weights: its architecture, and the tokenizer to train on the dataset."""

    architecture: dict[str, Any] = Field(
        description="Arguments of the transformers configuration, `model_type` among them; vocab_size is derived."
    )
    vocab_size: Annotated[int, Field(ge=300)] = Field(2048, description="Size of the byte-level BPE vocabulary.")
    special_tokens: dict[str, str] = Field(
        default_factory=lambda: {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"},
        description="Named special tokens; `additional` entries go to `extra_tokens`.",
    )
    extra_tokens: Texts = Field((), description="Further special tokens, e.g. those of the chat template.")
    chat_template: str | None = Field(None, description="Jinja chat template saved with the tokenizer.")


class BaseModelConfig(Config):
    """The model to start from and how it is loaded."""

    aliases = MappingProxyType(
        {
            "name": "huggingface_id",
            "model_name_or_path": "huggingface_id",
            "base_model_name": "huggingface_id",
            "dtype": "torch_dtype",
            "use_auth_token": "token",
            "hub_token": "token",
            "load_8bit": "load_in_8bit",
            "add_chatml_template": "add_chatml_prompt_template",
            "pad_to_multiple_of": "resize_to_multiple_of",
        }
    )
    shorthand = "huggingface_id"
    exclusive = ("huggingface_id", "from_scratch")

    huggingface_id: Name | None = Field(
        None, description="Hub id, folder of a Hugging Face model, or `builtin:NAME` for a model that ships with us."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    from_scratch: ScratchConfig | None = Field(None, description="Start from random weights instead.")
    cache_dir: Name | None = Field(None, description="Where hub models are cached; the hub's own default if absent.")
    torch_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the frozen base; trainable weights are fp32 all the same."
    )
    load_in_8bit: bool = Field(False, description="Load the frozen base in 8 bits (bitsandbytes).")
    load_in_4bit: bool = Field(False, description="Load the frozen base in 4 bits (bitsandbytes).")
    device_map: str | None = Field(
        None, description="Ignored in training, with a notice: the profile places the model."
    )
    trust_remote_code: bool = Field(
        False, description="Let a model run code of its own; only the flag --trust-remote-code of `train` sets it."
    )
    token: SecretStr | None = Field(None, description="Hub token, best as `${HF_TOKEN}`; never written anywhere.")
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = Field(
        "auto", description="Attention kernel; `auto` is decided by the hardware profile, with its reason."
    )
    add_pad_token: bool | None = Field(
        None,
        description="Make PAD a token of its own, adding `<|pad|>` if need be; `false` never adds one; by default one "
        "is added only where the tokenizer has no token to spare.",
    )
    add_chatml_tokens: bool = Field(False, description="Add `<|im_start|>` as BOS and `<|im_end|>` as EOS.")
    add_chatml_prompt_template: bool = Field(False, description="Same as template: chatml.")
    template: str | None = Field(
        None, description="Chat template by name (phi, llama3, chatml …), in place of the tokenizer's own."
    )
    resize_to_multiple_of: Count = Field(
        32, description="The rows of an embedding that has to grow for new tokens are a multiple of this."
    )

    @property
    def template_name(self) -> str | None:
        """The chat template that is asked for by name, under either spelling."""
        return "chatml" if self.add_chatml_prompt_template else self.template

    @field_validator("template")
    @classmethod
    def _one_template(cls, value: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("add_chatml_prompt_template") and value not in (None, "chatml"):
            raise ValueError(f"{value} and add_chatml_prompt_template: true exclude each other")
        return value


class GenerateDataConfig(Config):
    """A generated dataset (`llamafarm datagen`), made anew at each run from its seed."""

    shorthand = "name"

    name: Literal["smart-home"] = Field(description="The generator.")
    size: Literal["small", "medium", "large"] | Count = Field("small", description="Rows: a size, or a number.")
    languages: Texts = Field(("english",), description="Languages to mix.")
    format: Literal["messages", "sharegpt", "alpaca", "text"] = Field("messages", description="Form of the rows.")
    system: bool = Field(True, description="Put a system turn with the home's devices before each command.")
    seed: int = Field(0, description="Same seed, same rows.")


class MaskAuditConfig(Config):
    """What training refuses when it looks at its own labels; `llamafarm inspect` shows the same."""

    enabled: bool = Field(True, description="Audit the labels before training.")
    stop_token: bool = Field(True, description="Refuse answers whose stop token is not trained.")
    prompt_tokens: bool = Field(True, description="Refuse trained tokens that are no part of an answer.")
    max_unlabelled: Fraction = Field(0.05, description="Refuse when a larger share of the rows has nothing to learn.")


Form = Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text", "preference", "unpaired"]
Column = Literal[
    "messages",
    "conversations",
    "tools",
    "system",
    "instruction",
    "input",
    "output",
    "history",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "label",
    "text",
]


class RowsConfig(Config):
    """Where rows are, and what they look like."""

    path: Name | None = Field(
        None,
        description="File (jsonl, json, csv, tsv, parquet, txt; also .gz, .zst), folder, pattern, or hub id "
        "(OWNER/NAME, OWNER/NAME:SPLIT), or a name in dataset_info.json; `#N` behind it takes N rows by chance.",
    )
    subset: str | None = Field(None, description="Configuration of a hub dataset that has several.")
    dataset_dir: Name | None = Field(
        None,
        description="Folder of a dataset_info.json, whose names `path` may give; by default that of the strategy, "
        "the working folder, or `data` in it.",
    )
    generate: GenerateDataConfig | None = Field(None, description="Generate the rows instead of reading a file.")
    format: Form = Field("auto", description="Form of the rows; `auto` looks at the columns and says what it found.")
    columns: dict[Column, str] = Field(
        default_factory=dict, description="Our name of a column → the name that it has in the data."
    )
    text_field: str = Field("text", description="Column of raw text.")


class SourceConfig(RowsConfig):
    """One of several sources of rows."""

    shorthand = "path"
    exclusive = ("path", "generate")

    weight: Positive | None = Field(
        None, description="Rows are taken in this proportion, as many as there are; without weights, all rows."
    )
    task: Annotated[str, Field(pattern=r"^[^\[\]\s]+$")] | None = Field(
        None, description="Puts `[TASK:NAME] ` before the first user turn, or the text."
    )


class FiltersConfig(Config):
    """Rows to leave out, counted by reason in the run's ledger. By default none is."""

    max_input_length: Count | None = Field(
        None, description="Leave out rows whose turns before the last answer have more characters than this, together."
    )
    max_output_length: Count | None = Field(
        None, description="Leave out rows with an answer, or a raw text, of more characters."
    )
    single_response_only: bool = Field(False, description="Leave out conversations with several answers.")
    remove_duplicates: bool = Field(False, description="Of rows that say the same keep the first.")
    filter_empty: bool = Field(False, description="Leave out rows whose texts are empty, instead of refusing them.")
    remove_patterns: Texts = Field((), description="Leave out rows in which one of these regular expressions is found.")

    @field_validator("remove_patterns")
    @classmethod
    def _compiled(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return value


class DatasetConfig(RowsConfig):
    """The data: what to train on and what to hold out."""

    aliases = MappingProxyType(
        {
            "data_path": "path",
            "train_dataset": "path",
            "dataset": "path",
            "dataset_name": "path",
            "eval_dataset": "eval_path",
            "test_dataset": "eval_path",
        }
    )
    shorthand = "path"
    exclusive = ("path", "generate", "sources")

    eval_path: Name | None = Field(None, description="Held-out rows; without it the data splitter decides.")
    sources: tuple[SourceConfig, ...] | None = Field(
        None, description="Several sources of rows, mixed in a seeded order."
    )
    sample_seed: Annotated[int, Field(ge=0)] = Field(42, description="Seed of samples and of mixing sources.")
    max_samples: Count | None = Field(None, description="Use the first N rows only.")
    filters: FiltersConfig = Field(default_factory=FiltersConfig, description="Rows to leave out, counted by reason.")
    over_long: Literal["truncate", "drop", "split", "error"] = Field(
        "truncate", description="Rows above max_seq_length: cut the prompt first, drop, split in several, or refuse."
    )
    max_token_loss: Fraction = Field(
        0.01, description="Largest share of the trained tokens that this may cost; with 1 nothing is refused."
    )
    cache: bool = Field(True, description="Keep tokenized rows for the next run on the same data and tokenizer.")
    train_on_inputs: bool = Field(False, description="Also learn prompts; by default assistant turns alone.")
    split_special_tokens: bool = Field(
        True, description="Special tokens that stand in rows are text; `false`: they act as those of the template do."
    )
    prefix_ids: tuple[int, ...] | None = Field(
        None, description="Token ids before each answer, `1,2,3` or a list: an explicit mask, where the template fails."
    )
    suffix_ids: tuple[int, ...] | None = Field(
        None, description="Token ids that end an answer, and are learned; one of the two completes the other."
    )
    mask_audit: MaskAuditConfig = Field(
        default_factory=MaskAuditConfig, description="What is refused when the labels are not right."
    )

    @field_validator("prefix_ids", "suffix_ids", mode="before")
    @classmethod
    def _parsed(cls, value: Any) -> Any:
        """Ids as they are pasted: `1,2,3`, one number, or a list."""
        if value is None:
            return None
        parts = value.replace(",", " ").split() if isinstance(value, str) else value
        parts = [parts] if isinstance(parts, int) else parts
        try:
            ids = [int(str(part)) for part in parts]
        except (TypeError, ValueError):
            message = f"Error parsing prefix_ids or suffix_ids: {value!r} is no list of token ids, e.g. 1,2,3"
            raise ValueError(message) from None
        if not ids or min(ids) < 0:
            raise ValueError("Error parsing prefix_ids or suffix_ids: token ids are numbers from 0, at least one")
        return ids


class CurriculumConfig(Config):
    """Easy rows first, in each epoch."""

    shorthand = "by"

    by: Annotated[str, Field(min_length=1)] = Field(
        description="What makes a row hard: `words`, `tokens`, or the name of a column of numbers."
    )

    @property
    def column(self) -> str | None:
        """The column, if it goes by one."""
        return None if self.by in ("words", "tokens") else self.by


class GuardConfig(Config):
    """What watches over a training, and what follows from what it sees."""

    aliases = MappingProxyType({"spike_zscore": "spike_threshold", "max_retries": "max_recoveries"})
    shorthand = "policy"

    policy: Literal["off", "warn", "stop", "recover"] = Field(
        "stop",
        description="On a loss or gradient that is not finite: leave the step out (`warn`), end the run with exit code "
        "6 (`stop`), or go back, leave the rows out and change something (`recover`). `off`: nothing is watched.",
    )
    anomalies: Literal["off", "warn", "stop", "recover"] = Field(
        "warn", description="The same for what is finite and looks wrong: loss exactly 0, spikes, odd gradient norms."
    )
    window: Annotated[int, Field(ge=20)] = Field(50, description="Steps that a spike is compared with.")
    spike_threshold: Positive = Field(10.0, description="Robust standard deviations above the median make a spike.")
    grad_norm_min: NonNegative = Field(0.0, description="Smallest gradient norm before clipping that is in order.")
    grad_norm_max: Positive = Field(1e4, description="Largest gradient norm before clipping that is in order.")
    min_learning_rate: NonNegative = Field(
        1e-6, description="A learning rate below it is worth a warning, unless its schedule begins or ends."
    )
    snapshot_steps: Count = Field(50, description="`recover`: steps between states that are kept in main memory.")
    max_recoveries: Annotated[int, Field(ge=0)] = Field(5, description="`recover`: how often, before the run ends.")
    learning_rate_factor: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.1, description="`recover`: what the learning rate is multiplied by on the last rung."
    )
    save_broken_step: bool = Field(
        True, description="Keep what `llamafarm replay-step` needs of a step that ends a run or is left out."
    )


class TrainingConfig(Config):
    """Hyper-parameters. `batch_size` is per device; a step sees batch_size x accumulation x devices rows."""

    aliases = MappingProxyType(
        {
            "per_device_train_batch_size": "batch_size",
            "stability_guard": "guard",
            "per_device_batch_size": "batch_size",
            "micro_batch_size": "batch_size",
            "lr": "learning_rate",
            "epochs": "num_epochs",
            "num_train_epochs": "num_epochs",
            "optimizer": "optim",
            "offload_optimizer": "use_cpu_offload",
            "learning_rate_schedule": "lr_scheduler_type",
            "learning_rate_warmup": "warmup_ratio",
            "gradient_clip": "max_grad_norm",
            "eval_step": "eval_steps",
            "save_step": "save_steps",
            "use_gradient_checkpointing": "gradient_checkpointing",
            "activation_checkpointing": "gradient_checkpointing",
            "use_bf16": "bf16",
            "use_fp16": "fp16",
            "use_tf32": "tf32",
            "enable_torch_compile": "torch_compile",
            "cutoff_len": "max_seq_length",
            "ctx_size": "max_seq_length",
            "max_length": "max_seq_length",
            "evaluation_strategy": "eval_strategy",
            "neat_packing": "packing",
        }
    )

    # what is learned
    stage: Literal["sft", "pt"] = Field(
        "sft", description="`sft`: answers given prompts; `pt`: every token of raw text."
    )
    max_seq_length: Count = Field(2048, description="Tokens kept of a row; the prompt is cut first.")
    # batches
    batch_size: Annotated[Count, WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]})] = (
        Field(4, description="Rows, or packs of rows, per device and micro-step; `auto`: see auto_find_batch_size.")
    )
    gradient_accumulation_steps: Count = Field(1, description="Micro-steps per optimizer step.")
    global_batch_size: Count | None = Field(
        None, description="Rows per optimizer step over all devices; the accumulation follows from it, exactly."
    )
    auto_find_batch_size: bool = Field(
        False,
        description="Try out how many rows of a step the memory takes at a time; a step's rows stay what they are. "
        "`batch_size: auto` means this.",
    )
    on_out_of_memory: Literal["halve", "stop"] = Field(
        "halve", description="Take the step again with half as many rows at a time, or end the run with exit code 8."
    )
    group_by_length: bool = Field(False, description="Batch rows of similar length together, seeded.")
    length_column_name: str = Field("length", description="Column with row lengths; absent: token counts are used.")
    curriculum: CurriculumConfig | None = Field(
        None, description="Easy rows first instead of a shuffled order; rows equally hard are shuffled."
    )
    packing: bool = Field(
        False, description="Several rows in one, isolated from one another; batch_size then counts packs."
    )
    packing_length: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Most tokens of a pack, at least max_seq_length, which is the default."
    )
    # duration
    num_epochs: Positive = Field(3.0, description="Passes over the training rows.")
    max_steps: Steps = Field(-1, description="Optimizer steps, instead of num_epochs; -1: num_epochs decides.")
    # optimization
    learning_rate: NonNegative = Field(2e-4, description="Peak learning rate.")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = Field(
        "cosine", description="Shape of the learning rate over the steps."
    )
    warmup_ratio: Fraction = Field(0.03, description="Share of all steps that warm up.")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Warm-up steps; above 0 it overrides the ratio.")
    optim: Literal[
        "adamw_torch",
        "adamw_torch_fused",
        "sgd",
        "adamw_8bit",
        "paged_adamw_8bit",
        "adamw_bnb_8bit",
        "paged_adamw_32bit",
    ] = Field("adamw_torch", description="Optimizer; the 8-bit and paged ones need bitsandbytes.")
    adam_beta1: Fraction = Field(0.9, description="AdamW beta 1.")
    adam_beta2: Fraction = Field(0.999, description="AdamW beta 2.")
    adam_epsilon: Positive = Field(1e-8, description="AdamW epsilon.")
    weight_decay: NonNegative = Field(
        0.01, description="Decoupled weight decay; not on vectors: biases, norms, DoRA's magnitudes."
    )
    max_grad_norm: NonNegative = Field(1.0, description="Clip the gradient's global norm; 0: no clipping.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations: less memory, more work.")
    # evaluation
    eval_strategy: Literal["auto", "no", "steps", "epoch"] = Field(
        "auto", description="When to evaluate held-out rows; `auto`: each eval_steps if given, else each epoch."
    )
    eval_steps: Steps | None = Field(
        None, description="Steps between evaluations; -1: each epoch; 999999 or more: never; default 100."
    )
    per_device_eval_batch_size: Count | None = Field(None, description="Rows per evaluation batch; default batch_size.")
    eval_accumulation_steps: Count | None = Field(
        None, description="Accepted; without effect, because evaluation keeps no predictions to accumulate."
    )
    compute_metrics: bool = Field(False, description="Also token accuracy and perplexity of the held-out rows.")
    early_stopping: bool = Field(False, description="Stop when the metric no longer improves.")
    early_stopping_patience: Count = Field(3, description="Evaluations without improvement before stopping.")
    early_stopping_threshold: NonNegative = Field(0.0, description="Smallest change that counts as improvement.")
    # checkpoints
    save_strategy: Literal["no", "steps", "epoch"] = Field("steps", description="When to write checkpoint-N.")
    save_steps: Steps = Field(500, description="Steps between checkpoints; -1: each epoch; 999999 or more: never.")
    save_total_limit: Count | None = Field(3, description="Checkpoints kept; the best one is kept besides.")
    load_best_model_at_end: bool = Field(False, description="Save the best checkpoint as the result, not the last.")
    metric_for_best_model: str = Field("eval_loss", description="`loss`/`eval_loss`, or another evaluation metric.")
    greater_is_better: bool | None = Field(None, description="Direction of that metric; default by its name.")
    # logging
    logging_steps: Count = Field(10, description="Steps between log lines.")
    logging_first_step: bool = Field(True, description="Log step 1 too.")
    report_to: Annotated[_Trackers, BeforeValidator(_listed, json_schema_input_type=_Tracker | _Trackers)] = Field(
        ("none",), description="Where metrics go besides trainer_log.jsonl."
    )
    # precision and speed
    fp16: bool = Field(False, description="fp16 autocast with loss scaling (CUDA only).")
    bf16: bool = Field(False, description="bf16 autocast.")
    tf32: bool | None = Field(None, description="TensorFloat-32 matrix products (CUDA, Ampere or newer).")
    fused: bool = Field(
        True,
        description="Decoder layers, or layers with adapters, with a backward pass of our own, where one is known.",
    )
    use_liger_kernel: bool = Field(
        False, description="Norms, gated activations and rotary positions by the kernels of Liger (CUDA)."
    )
    activation_offloading: bool = Field(
        False, description="Keep activations in main memory until the way back (CUDA): less memory, more copying."
    )
    pure_bf16: bool = Field(
        False, description="All weights in bf16, the trained ones too: half the memory, small updates are rounded away."
    )
    disable_cudnn_sdpa: bool = Field(True, description="Keep cuDNN's kernel out of sdpa attention (CUDA).")
    disable_flash_sdpa: bool = Field(False, description="Keep the flash kernel out of sdpa attention.")
    torch_compile: bool = Field(False, description="Compile the model that is trained; what is saved stays as it is.")
    torch_compile_backend: Literal["inductor", "aot_eager", "eager"] = Field(
        "inductor", description="What compiles it; the others than inductor are for finding faults."
    )
    use_flash_attention: bool = Field(False, description="Same as base_model.attn_implementation: flash_attention_2.")
    use_cpu_offload: bool = Field(
        False, description="Keep AdamW's state in main memory and compute its steps there (CUDA): less memory, slower."
    )
    use_ipex: bool = Field(False, description="Accepted; its library has been merged into torch, so without effect.")
    dataloader_num_workers: Annotated[int, Field(ge=0)] = Field(
        0, description="Loader processes (batches are ready in memory)."
    )
    dataloader_pin_memory: bool = Field(True, description="Pin host memory for copies to the GPU.")
    heartbeat_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        120,
        description="With several processes: seconds without a sign of life or progress of one after which the others "
        "end the run, to be resumed; 0: they wait as long as PyTorch does.",
    )
    # stability
    guard: GuardConfig = Field(default_factory=GuardConfig, description="What watches over losses and gradients.")
    # reproducibility and publishing
    seed: Annotated[int, Field(ge=0)] = Field(42, description="Seed of weights, dropout and order.")
    data_seed: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Seed of the row order alone; default: seed."
    )
    resume_from_checkpoint: bool | Name | None = Field(
        None,
        description="Go on with an interrupted run: its folder or one of its checkpoints; true: with the run in "
        "output_dir, or begin it if there is none.",
    )
    push_to_hub: bool = Field(False, description="Upload the result to the hub.")
    hub_model_id: str | None = Field(None, description="Repository to upload to.")
    hub_strategy: Literal["every_save", "checkpoint", "end", "all_checkpoints"] = Field(
        "every_save", description="When to upload."
    )
    hub_token: SecretStr | None = Field(None, description="Hub token for uploads, best as `${HF_TOKEN}`.")

    @model_validator(mode="before")
    @classmethod
    def _auto(cls, values: Any) -> Any:
        """`batch_size: auto` asks for the micro-batch that fits; the rows of a step stay those of the default."""
        if isinstance(values, Mapping) and values.get("batch_size") == "auto":
            rest = {key: value for key, value in values.items() if key != "batch_size"}
            return rest | {"auto_find_batch_size": True}
        return values

    @property
    def eval_interval(self) -> tuple[Literal["no", "steps", "epoch"], int]:
        """What `eval_strategy` comes to, and the steps between evaluations by steps."""
        steps = 100 if self.eval_steps is None else self.eval_steps
        if self.eval_strategy == "auto":
            return ("epoch" if self.eval_steps is None else "steps"), steps
        return self.eval_strategy, steps


class EvaluationConfig(Config):
    """What is measured on held-out rows when training has ended."""

    exact_match: bool = Field(False, description="Generate answers for held-out rows and compare them as a whole.")
    max_samples: Count = Field(200, description="Held-out rows to answer.")
    max_new_tokens: Count = Field(128, description="Longest answer.")
    batch_size: Count = Field(16, description="Rows answered at a time.")
    baseline: bool = Field(True, description="Measure the untrained base in the same way.")


class FineTunerConfig(Config):
    """What every fine-tuner's configuration holds. `method` becomes a union of the installed methods."""

    aliases = MappingProxyType(
        {
            "huggingface_id": "base_model.huggingface_id",
            "model_name_or_path": "base_model.huggingface_id",
            "training_args": "training",
            "eval_dataset": "dataset.eval_path",
            "train_dataset": "dataset.path",
            "data_preprocessing": "dataset.filters",
            "add_pad_token": "base_model.add_pad_token",
            "add_chatml_tokens": "base_model.add_chatml_tokens",
            "add_chatml_prompt_template": "base_model.add_chatml_prompt_template",
        }
    )

    base_model: BaseModelConfig = Field(default_factory=BaseModelConfig, description="The model to start from.")
    dataset: DatasetConfig = Field(default_factory=DatasetConfig, description="The data.")
    method: tuple[Any, ...] = Field((), description="How parameters are adapted: one method, or a list that stacks.")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="Hyper-parameters.")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="Measures after training.")
    output_dir: Name = Field("./output", description="Where the run writes.")
    overwrite_output_dir: bool = Field(False, description="Replace an earlier run of ours in output_dir.")
