"""What can be said about a plan before anything is loaded: refused if it was asked for, explained otherwise.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from operator import attrgetter

from llamafarm.api import NO_EFFECT, Decision, RunPlan
from llamafarm.errors import NetworkError, Problem, nearest, one_of
from llamafarm.models.hub import is_offline, require_cached
from llamafarm.models.locate import locate, not_whole
from llamafarm.models.named_templates import problem_with
from llamafarm.models.prequantized import library_problem, stored_as
from llamafarm_tuners.pytorch.best import full_name
from llamafarm_tuners.pytorch.config import PytorchConfig
from llamafarm_tuners.pytorch.curriculum import check_curriculum
from llamafarm_tuners.pytorch.frozen import choice, with_base
from llamafarm_tuners.pytorch.global_batch import check_global_batch
from llamafarm_tuners.pytorch.idle import idle_settings
from llamafarm_tuners.pytorch.kernels import (
    attention_asked,
    no_offloading,
    uncompilable,
    unusable_kernel,
    unusable_liger,
)
from llamafarm_tuners.pytorch.optim import BESIDE_MAIN_MEMORY, BITSANDBYTES, OFFLOADED, effective, offloaded
from llamafarm_tuners.pytorch.packs import check_packing
from llamafarm_tuners.pytorch.precision import autocast, base_format, computes, quantization, trains_parts
from llamafarm_tuners.pytorch.schedule import happens
from llamafarm_tuners.pytorch.sharding import check_sharding
from llamafarm_tuners.pytorch.tasks import metric_names

Findings = Iterator[Problem | Decision]


def check(config: PytorchConfig, plan: RunPlan) -> Findings:
    """Everything to refuse or explain.

    Raises:
        NetworkError: If something is needed from the hub, which is switched off.
    """
    found = choice(config, plan)
    if found is not None:
        yield Decision("base_model.torch_dtype", found.dtype, found.reason)
        config = with_base(config, found.dtype)
    for topic in (
        _precision,
        _attention,
        _compiling,
        _gpu,
        check_global_batch,
        _base,
        _template,
        _quantization,
        _prequantized,
        _methods,
        _optimizer,
        _growing,
        check_sharding,
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


def _beside(plan: RunPlan, path: str) -> str:
    """Where the other side of a contradiction stands."""
    return f" ({path} at {plan.given[path]})" if path in plan.given else ""


def _precision(config: PytorchConfig, plan: RunPlan) -> Findings:
    training, device = config.training, plan.device
    if training.fp16 and not computes(device, "fp16"):
        reason = f"fp16 autocast needs CUDA; on {device.type} it would change nothing"
        yield _drop(plan, "LF-TRAIN-001", "training.fp16", reason, "use training.bf16, or leave it out for fp32")
    if training.tf32 and not computes(device, "tf32"):
        reason = f"TensorFloat-32 exists on NVIDIA GPUs only, not on {device.type}"
        if device.type == "cuda":
            reason = f"{device.name} has no TensorFloat-32: Ampere and newer GPUs have"
        yield _drop(plan, "LF-TRAIN-002", "training.tf32", reason, "leave it out")
    for path, on in (("training.bf16", training.bf16), ("training.pure_bf16", training.pure_bf16)):
        if on and not computes(device, "bf16"):
            reason = f"{device.name} does not compute in bfloat16"
            hint = "use training.fp16, or leave it out for fp32"
            if path == "training.bf16":
                yield _drop(plan, "LF-TRAIN-004", path, reason, hint)
            else:
                yield Problem("LF-TRAIN-004", f"{path}: {reason}", plan.given.get(path, ""), hint)
    if training.pure_bf16:
        yield from _pure_bf16(config, plan)
    elif training.bf16 and training.fp16 and computes(device, "bf16") and computes(device, "fp16"):
        if {"training.fp16", "training.bf16"} <= set(plan.given):
            message = f"training.fp16 and training.bf16 exclude each other{_beside(plan, 'training.bf16')}"
            yield Problem("LF-TRAIN-003", message, plan.given["training.fp16"], "keep one")
        else:
            loser = "training.bf16" if "training.fp16" in plan.given else "training.fp16"
            yield Decision(loser, "off", "the other 16-bit format is used")


def _pure_bf16(config: PytorchConfig, plan: RunPlan) -> Findings:
    """Refuse what says otherwise; leave out what only a default says."""
    training, base = config.training, config.base_model
    path = "training.pure_bf16"
    where = plan.given.get(path, "")
    for other, on, what in (
        ("training.fp16", training.fp16, "fp16 autocast"),
        ("base_model.torch_dtype", base.torch_dtype not in ("auto", "bfloat16"), f"a base in {base.torch_dtype}"),
    ):
        if on and other in plan.given:
            message = f"{path} contradicts {what}{_beside(plan, other)}"
            yield Problem("LF-TRAIN-031", message, where, "keep one of them")
        elif on:
            yield Decision(other, "off" if training.fp16 and other.endswith("fp16") else "bfloat16", "pure_bf16 is on")
    quantized = [item for item in ("load_in_4bit", "load_in_8bit") if _width_given(config, plan, item)[0]]
    if quantized:
        message = f"{path} contradicts a quantized base: its packed weights stay as they are"
        yield Problem("LF-TRAIN-031", message, where, "leave pure_bf16 out")
    if training.bf16:
        yield Decision("training.bf16", "off", "pure_bf16: everything is bf16 already, nothing is left to autocast")


def _attention(config: PytorchConfig, plan: RunPlan) -> Findings:
    path = "base_model.attn_implementation"
    if config.training.use_flash_attention and path in plan.given:
        given = config.base_model.attn_implementation
        if given not in ("auto", "flash_attention_2"):
            beside = _beside(plan, "training.use_flash_attention")
            message = f"training.use_flash_attention contradicts {path}: {given}{beside}"
            yield Problem("LF-TRAIN-005", message, plan.given[path], "keep one of them")
            return
    if found := unusable_kernel(attention_asked(config, plan), config, plan):
        if path not in plan.given and config.training.use_flash_attention:
            path = "training.use_flash_attention"
        yield _drop(plan, found.id, path, found.reason, found.hint)


def _compiling(config: PytorchConfig, plan: RunPlan) -> Findings:
    if config.training.torch_compile and (found := uncompilable(config.training, plan)):
        yield _drop(plan, found.id, "training.torch_compile", found.reason, found.hint)


def _gpu(config: PytorchConfig, plan: RunPlan) -> Findings:
    """What GPUs alone can do."""
    training = config.training
    if training.use_liger_kernel and (found := unusable_liger(plan)):
        yield _drop(plan, found.id, "training.use_liger_kernel", found.reason, found.hint)
    elif training.use_liger_kernel and training.torch_compile:
        where = plan.given.get("training.use_liger_kernel", "")
        message = "training.use_liger_kernel contradicts training.torch_compile: both replace the same computations"
        yield Problem("LF-TRAIN-122", message, where, "keep one of them")
    if training.activation_offloading and (found := no_offloading(plan)):
        yield _drop(plan, found.id, "training.activation_offloading", found.reason, found.hint)


def _base(config: PytorchConfig, plan: RunPlan) -> Findings:
    base = config.base_model
    changes_base = any(method.adapter().changes_base for method in plan.methods)
    if base.huggingface_id and locate(base.huggingface_id).kind == "hub" and is_offline():
        require_cached(base.huggingface_id, base)
    if base.huggingface_id and locate(base.huggingface_id).is_adapter:
        yield not_whole(base.huggingface_id, plan.given.get("base_model.huggingface_id", ""))
    if base.from_scratch and not changes_base:
        yield Problem(
            "LF-TRAIN-008",
            "an adapter on a model from scratch is lost with its random base",
            plan.given.get("method", ""),
            "use method: full",
        )
    yield from _base_format(config, plan, changes_base=changes_base)
    if base.device_map:
        yield Decision("base_model.device_map", "not used", "in training the whole model is on one device per process")
    if plan.device.count > 1:
        yield Decision("devices", f"1 of {plan.device.count}", "this process uses one device")


def _template(config: PytorchConfig, plan: RunPlan) -> Findings:
    path = "base_model.template"
    if (name := config.base_model.template) and (problem := problem_with(name, plan.given.get(path, ""))):
        yield problem


def _base_format(config: PytorchConfig, plan: RunPlan, *, changes_base: bool) -> Findings:
    """Refuse two formats that contradict each other; say what a base is loaded in where that is not what was set."""
    path, asked = "base_model.torch_dtype", config.base_model.torch_dtype
    used = base_format(config, plan)
    if asked in ("auto", used) or config.training.pure_bf16:
        return
    mixed = autocast(config.training, plan)
    if changes_base:
        yield Decision(path, used, "weights that are trained are kept in fp32")
    elif mixed == "no" and trains_parts(plan):
        yield Decision(path, used, "parts are trained whole, in fp32 (modules_to_save): without autocast all has to be")
    elif asked == "bfloat16":
        reason = f"{plan.device.name} does not compute in bfloat16"
        if path in plan.given:
            yield Problem("LF-TRAIN-004", f"{path}: {reason}", plan.given[path], "use float16 or float32")
        else:
            yield Decision(path, used, reason)
    elif plan.device.type == "cpu":
        yield Decision(path, used, "a CPU has no fp16 arithmetic to speak of")
    elif {path, "training.bf16"} <= set(plan.given):
        message = f"{path}: {asked} contradicts bf16 autocast{_beside(plan, 'training.bf16')}"
        yield Problem("LF-TRAIN-030", message, plan.given[path], "use bfloat16, or training.fp16 instead of bf16")
    else:
        yield Decision(path, used, "autocast is in bf16, and decides")


def _width_given(config: PytorchConfig, plan: RunPlan, width: str) -> tuple[bool, str]:
    """Whether a width (`load_in_4bit`, `load_in_8bit`) is asked for, by the base or by a method; and where."""
    by_base = bool(getattr(config.base_model, width))
    by_method = any(bool(method.adapter().quantization.get(width)) for method in plan.methods)
    places = [place for path, place in plan.given.items() if path.endswith(f".{width}")]
    if by_method and not places:
        places = [place for path, place in plan.given.items() if path.startswith("method")]
    return by_base or by_method, places[0] if places else ""


def _quantization(config: PytorchConfig, plan: RunPlan) -> Findings:
    base = config.base_model
    specs = [method.adapter() for method in plan.methods]
    asked = next((spec.quantization for spec in specs if spec.quantization), {})
    (four, place), (eight, other) = (_width_given(config, plan, width) for width in ("load_in_4bit", "load_in_8bit"))
    where = place or other
    if not (four or eight):
        return
    if four and eight:
        beside = f" (8 bits at {other})" if place and other else ""
        message = f"the base is asked for in 4 bits and in 8 bits{beside}"
        yield Problem("LF-TRAIN-012", message, where, "choose one")
    if any(spec.changes_base for spec in specs) or base.from_scratch:
        yield Problem("LF-TRAIN-007", "the weights of a quantized base cannot be trained", where, "use method: qlora")
    if find_spec("bitsandbytes") is None:
        yield Problem("LF-PLUGIN-023", "a quantized base needs bitsandbytes", where, "pip install 'llamafarm[qlora]'")
    settled = quantization(asked, base, plan.device).get("bnb_4bit_compute_dtype")
    if settled and settled != asked.get("bnb_4bit_compute_dtype"):
        reason = f"what suits a 4-bit base on {plan.device.type}"
        yield Decision("quantization.bnb_4bit_compute_dtype", settled, reason)


def _prequantized(config: PytorchConfig, plan: RunPlan) -> Findings:
    """A base that comes quantized needs its library, cannot be quantized again, and carries few methods."""
    base = config.base_model
    if not base.huggingface_id:
        return
    located = locate(base.huggingface_id)
    if located.is_adapter or not (stored := stored_as(located, base)):
        return
    where = plan.given.get("base_model.huggingface_id", "")
    if problem := library_problem(located, base, where):
        yield problem
    for method in plan.methods:
        spec = method.adapter()
        if spec.changes_base:
            message = f"the base is stored in the format {stored}: its weights cannot be trained"
            yield Problem("LF-TRAIN-007", message, where, "use method: lora")
        elif spec.quantization:
            message = f"the base is stored in the format {stored} and cannot be quantized again"
            yield Problem("LF-STRATEGY-055", message, where, "use method: lora")
        elif stored in ("gptq", "awq") and not (spec.kind == "lora" or spec.virtual_tokens or method.stacks):
            message = f"{method.name!r} cannot stand on a base that is stored in the format {stored}"
            yield Problem("LF-STRATEGY-054", message, where, "use method: lora, or a base that is not quantized")


def _methods(config: PytorchConfig, plan: RunPlan) -> Findings:
    """What the methods say that they cannot be trained with."""
    base = config.base_model
    width = 4 if base.load_in_4bit else 8 if base.load_in_8bit else None
    for method in plan.methods:
        spec = method.adapter()
        if width and width not in spec.bits and not spec.changes_base:
            where = plan.given.get(f"base_model.load_in_{width}bit", "")
            message = f"method {method.name!r} cannot stand on a base in {width} bits"
            can = f"{method.name} can on one in {max(spec.bits)} bits" if spec.bits else "leave the base as it is"
            yield Problem("LF-STRATEGY-054", message, where, f"{can}, or use lora")
        for path, reason in spec.refuses.items():
            if attrgetter(path)(config):
                message = f"method {method.name!r} does not go with {path}: {reason}"
                yield Problem("LF-STRATEGY-053", message, plan.given.get(path, ""), f"set {path}: false")


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
        yield from _offloaded_optimizer(plan, training.optim, optim)


def _offloaded_optimizer(plan: RunPlan, asked: str, optim: str) -> Findings:
    path, device = "training.use_cpu_offload", plan.device.type
    if device not in BESIDE_MAIN_MEMORY:
        yield Decision(path, NO_EFFECT, f"with {device} the optimizer's state is in main memory anyway")
    elif optim == "sgd":
        yield Decision(path, NO_EFFECT, "sgd keeps no state")
    elif optim not in OFFLOADED:
        reason = f"optim: {asked} keeps its state in a way of its own"
        reason += ", paged out by itself" if asked.startswith("paged") else ""
        yield _drop(plan, "LF-TRAIN-160", path, reason, "use optim: adamw_torch, or leave use_cpu_offload out")


def _growing(config: PytorchConfig, plan: RunPlan) -> Findings:
    """Parameters that grow: each entry has moments of its own, which blocks of 8 bits and paged memory do not give."""
    path, offload = "training.optim", "training.use_cpu_offload"
    optim = effective(config.training.optim, plan.device.type)
    for method in (method for method in plan.methods if method.adapter().grows):
        if optim in BITSANDBYTES:
            message = f"{path}: {optim} keeps moments in blocks or pages, which do not grow as {method.name!r} does"
            yield Problem("LF-TRAIN-075", message, plan.given.get(path, ""), "use optim: adamw_torch, or one rank")
        elif offloaded(config.training, plan.device.type):
            reason = f"what is kept in main memory does not grow as {method.name!r} does"
            yield Problem("LF-TRAIN-161", f"{offload}: {reason}", plan.given.get(offload, ""), "leave it out")


def _evaluation(config: PytorchConfig, plan: RunPlan) -> Findings:
    training = config.training
    if not happens(*training.eval_interval):
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
