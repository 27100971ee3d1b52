"""What can be said about a plan before anything is loaded: refused if it was asked for, explained otherwise.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from llamafarm.api import Decision, RunPlan
from llamafarm.errors import NetworkError, Problem, nearest, one_of
from llamafarm.models.hub import is_offline, require_cached
from llamafarm.models.locate import locate
from llamafarm_tuners.pytorch.best import full_name
from llamafarm_tuners.pytorch.config import PytorchConfig
from llamafarm_tuners.pytorch.curriculum import check_curriculum
from llamafarm_tuners.pytorch.idle import idle_settings
from llamafarm_tuners.pytorch.optim import BITSANDBYTES, effective
from llamafarm_tuners.pytorch.packs import check_packing
from llamafarm_tuners.pytorch.precision import attention_asked, quantization
from llamafarm_tuners.pytorch.schedule import happens
from llamafarm_tuners.pytorch.tasks import metric_names

Findings = Iterator[Problem | Decision]


def check(config: PytorchConfig, plan: RunPlan) -> Findings:
    """Everything to refuse or explain.

    Raises:
        NetworkError: If something is needed from the hub, which is switched off.
    """
    for topic in (
        _precision,
        _attention,
        _base,
        _quantization,
        _optimizer,
        _evaluation,
        _reports,
        _hub,
        check_packing,
        check_curriculum,
    ):
        yield from topic(config, plan)
    yield from idle_settings(config, plan)


def _drop(plan: RunPlan, id_: str, path: str, reason: str, hint: str) -> Problem | Decision:
    """Refuse a setting that somebody wrote down; leave out, with its reason, one that only a default brought."""
    if path in plan.given:
        return Problem(id_, f"{path}: {reason}", plan.given[path], hint)
    return Decision(path, "off", reason)


def _precision(config: PytorchConfig, plan: RunPlan) -> Findings:
    training, device = config.training, plan.device
    on_cuda = device.type == "cuda"
    if training.fp16 and not on_cuda:
        reason = f"fp16 autocast needs CUDA; on {device.type} it would change nothing"
        yield _drop(plan, "LF-TRAIN-001", "training.fp16", reason, "use training.bf16, or leave it out for fp32")
    if training.tf32 and not on_cuda:
        reason = f"TensorFloat-32 exists on NVIDIA GPUs only, not on {device.type}"
        yield _drop(plan, "LF-TRAIN-002", "training.tf32", reason, "leave it out")
    if training.bf16 and not device.details.get("bf16", True):
        reason = f"{device.name} does not compute in bfloat16"
        yield _drop(plan, "LF-TRAIN-004", "training.bf16", reason, "use training.fp16, or leave it out for fp32")
    elif training.bf16 and training.fp16 and on_cuda:
        if {"training.fp16", "training.bf16"} <= set(plan.given):
            where = plan.given["training.fp16"]
            yield Problem("LF-TRAIN-003", "training.fp16 and training.bf16 exclude each other", where, "keep one")
        else:
            loser = "training.bf16" if "training.fp16" in plan.given else "training.fp16"
            yield Decision(loser, "off", "the other 16-bit format is used")


def _attention(config: PytorchConfig, plan: RunPlan) -> Findings:
    path = "base_model.attn_implementation"
    if config.training.use_flash_attention and path in plan.given:
        given = config.base_model.attn_implementation
        if given not in ("auto", "flash_attention_2"):
            message = f"training.use_flash_attention contradicts {path}: {given}"
            yield Problem("LF-TRAIN-005", message, plan.given[path], "keep one of them")
            return
    if attention_asked(config, plan) != "flash_attention_2":
        return
    if path not in plan.given and config.training.use_flash_attention:
        path = "training.use_flash_attention"
    if plan.device.type != "cuda":
        reason = f"FlashAttention 2 runs on NVIDIA GPUs only, not on {plan.device.type}"
        yield _drop(plan, "LF-TRAIN-006", path, reason, "leave it out: the device's own kernel is used")
    elif find_spec("flash_attn") is None:
        hint = "pip install flash-attn, or use sdpa"
        yield _drop(plan, "LF-PLUGIN-021", path, "the package flash-attn is not installed", hint)


def _base(config: PytorchConfig, plan: RunPlan) -> Findings:
    base = config.base_model
    changes_base = any(method.adapter().changes_base for method in plan.methods)
    if base.huggingface_id and locate(base.huggingface_id).kind == "hub" and is_offline():
        require_cached(base.huggingface_id, base)
    if base.from_scratch and not changes_base:
        yield Problem(
            "LF-TRAIN-008",
            "an adapter on a model from scratch is lost with its random base",
            plan.given.get("method", ""),
            "use method: full",
        )
    if changes_base and base.torch_dtype not in ("auto", "float32"):
        yield Decision("base_model.torch_dtype", "float32", "weights that are trained are kept in fp32")
    elif base.torch_dtype == "float16" and plan.device.type == "cpu":
        yield Decision("base_model.torch_dtype", "float32", "a CPU has no fp16 arithmetic to speak of")
    if base.device_map:
        yield Decision("base_model.device_map", "not used", "in training the whole model is on one device per process")
    if plan.device.count > 1:
        yield Decision("devices", f"1 of {plan.device.count}", "this process uses one device")


def _quantization(config: PytorchConfig, plan: RunPlan) -> Findings:
    base = config.base_model
    specs = [method.adapter() for method in plan.methods]
    asked = next((spec.quantization for spec in specs if spec.quantization), {})
    where = plan.given.get("base_model.load_in_4bit") or plan.given.get("base_model.load_in_8bit", "")
    widths = {
        "4 bits": base.load_in_4bit or bool(asked.get("load_in_4bit")),
        "8 bits": base.load_in_8bit or bool(asked.get("load_in_8bit")),
    }
    if not any(widths.values()):
        return
    if all(widths.values()):
        yield Problem("LF-TRAIN-012", "the base is asked for in 4 bits and in 8 bits", where, "choose one")
    if any(spec.changes_base for spec in specs) or base.from_scratch:
        yield Problem("LF-TRAIN-007", "the weights of a quantized base cannot be trained", where, "use method: qlora")
    if find_spec("bitsandbytes") is None:
        yield Problem("LF-PLUGIN-023", "a quantized base needs bitsandbytes", where, "pip install 'llamafarm[qlora]'")
    settled = quantization(asked, base, plan.device).get("bnb_4bit_compute_dtype")
    if settled and settled != asked.get("bnb_4bit_compute_dtype"):
        reason = f"what suits a 4-bit base on {plan.device.type}"
        yield Decision("quantization.bnb_4bit_compute_dtype", settled, reason)


def _optimizer(config: PytorchConfig, plan: RunPlan) -> Findings:
    training, device = config.training, plan.device
    path = "training.optim"
    optim = effective(training.optim, device.type)
    if optim != training.optim:
        yield Decision(path, optim, f"with {device.type} there is no second memory to page to")
    if optim in BITSANDBYTES and find_spec("bitsandbytes") is None:
        hint = "pip install 'llamafarm[qlora]', or use adamw_torch"
        yield Problem("LF-PLUGIN-023", f"{path}: {optim} needs bitsandbytes", plan.given.get(path, ""), hint)
    if training.use_cpu_offload:
        path = "training.use_cpu_offload"
        if device.type == "cuda":
            reason = "moving optimizer state to main memory is not built in"
            yield _drop(plan, "LF-TRAIN-009", path, reason, "use optim: paged_adamw_8bit, which pages it out")
        else:
            yield Decision(path, "no effect", f"with {device.type} the optimizer's state is in main memory anyway")


def _evaluation(config: PytorchConfig, plan: RunPlan) -> Findings:
    training = config.training
    if not happens(training.eval_strategy, training.eval_steps):
        for name, on in (
            ("load_best_model_at_end", training.load_best_model_at_end),
            ("early_stopping", training.early_stopping),
        ):
            if on:
                reason = "there is never an evaluation to compare by"
                hint = "set training.eval_strategy: epoch, or steps with eval_steps"
                yield _drop(plan, "LF-TRAIN-011", f"training.{name}", reason, hint)
    metric = full_name(training.metric_for_best_model)
    where = plan.given.get("training.metric_for_best_model", "")
    names = metric_names(config.dataset)
    if metric not in names:
        message = f"no metric {training.metric_for_best_model!r}; there is {one_of(names)}"
        yield Problem("LF-TRAIN-013", message, where, nearest(metric, names))
    elif not metric.startswith("eval_loss") and not training.compute_metrics:
        yield Problem("LF-TRAIN-014", f"{metric} is not measured", where, "set training.compute_metrics: true")


def _reports(config: PytorchConfig, plan: RunPlan) -> Findings:
    if "tensorboard" in config.training.report_to and find_spec("tensorboard") is None:
        hint = "pip install 'llamafarm[tensorboard]', or report_to: none"
        paths = [path for path in plan.given if path.startswith("training.report_to")]
        path = paths[0] if paths else "training.report_to"
        yield _drop(plan, "LF-PLUGIN-022", path, "the package tensorboard is not installed", hint)


def _hub(config: PytorchConfig, plan: RunPlan) -> Findings:
    training = config.training
    if not training.push_to_hub:
        return
    where = plan.given.get("training.push_to_hub", "")
    if not training.hub_model_id:
        hint = "add training.hub_model_id: OWNER/NAME"
        yield Problem("LF-TRAIN-015", "push_to_hub: it is not said where to", where, hint)
    if is_offline():
        hint = "unset HF_HUB_OFFLINE, or push_to_hub: false"
        raise NetworkError([Problem("LF-NET-003", "push_to_hub: the hub is switched off here", where, hint)])
    if training.hub_strategy in ("every_save", "checkpoint"):
        yield Decision("training.hub_strategy", "end", "the result is uploaded once, when it is complete")
