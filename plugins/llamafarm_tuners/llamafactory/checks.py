"""What can be said about a strategy before LLaMA-Factory is started: refused with the alternative, or explained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafarm.api import Decision, Installed, RunPlan, installed
from llamafarm.errors import Problem, nearest
from llamafarm.models.locate import locate
from llamafarm_tuners.llamafactory.adapter import adapter_arguments, given_keys
from llamafarm_tuners.llamafactory.config import NATIVE, LlamaFactoryConfig
from llamafarm_tuners.llamafactory.environment import PPO, backend_for
from llamafarm_tuners.llamafactory.hyperparameters import training_arguments
from llamafarm_tuners.llamafactory.ppo import check_ppo
from llamafarm_tuners.llamafactory.translate import _SWITCHES, OURS, stage_of, tokenizes_itself

Findings = Iterator[Problem | Decision]
PYTORCH = "use type: pytorch, which can"


def check(config: LlamaFactoryConfig, plan: RunPlan) -> Findings:
    """Everything to refuse or explain."""
    backend = backend_for(stage_of(config))
    state = installed(backend)
    if state is None:
        hint = f"run: llamafarm backends setup {backend.name}"
        hint += "" if backend is PPO else "; or train with type: pytorch"
        yield Problem("LF-PLUGIN-070", "LLaMA-Factory is not set up", hint=hint)
    yield from _stage(config, plan)
    yield from _adapter(config, plan)
    yield from _settings(config, plan)
    yield from _arguments(config, plan, state)
    yield from _evaluation(config, plan)
    yield from _base(config, plan)


def _stage(config: LlamaFactoryConfig, plan: RunPlan) -> Findings:
    where = plan.given.get("stage", "")
    stage = stage_of(config)
    if config.stage and "training.stage" in plan.given and config.stage != config.training.stage:
        yield Problem("LF-STRATEGY-080", "stage and training.stage disagree", where, "keep one of them")
    if stage == "ppo":
        yield from check_ppo(config, plan)
    elif config.reward_model:
        path = plan.given.get("reward_model", "")
        yield Problem("LF-STRATEGY-083", f"stage {stage} has no reward model", path, "set stage: ppo, or leave it out")
    if stage in ("rm", "ppo") and config.training.load_best_model_at_end:
        message = f"stage {stage}: LLaMA-Factory cannot load the best model at the end"
        yield Problem("LF-STRATEGY-083", message, where, "leave training.load_best_model_at_end out")
    if config.dataset.train_on_inputs and stage != "sft":
        yield Problem("LF-STRATEGY-083", f"stage {stage} cannot learn prompts", where, "leave train_on_inputs out")


def _adapter(config: LlamaFactoryConfig, plan: RunPlan) -> Findings:
    where = plan.given.get("method", "") or next(
        (plan.given[name] for name in given_keys(config) if name in plan.given), ""
    )
    specs = tuple(method.adapter() for method in plan.methods)
    for spec in specs:
        if spec.kind == "bos-scaling":
            message = "bos-scaling changes the model as it runs, which cannot be done from outside LLaMA-Factory"
            yield Problem("LF-STRATEGY-082", message, where, "use type: pytorch, or train without it")
    found, problems = adapter_arguments(config, tuple(spec for spec in specs if spec.kind != "bos-scaling"), where)
    yield from problems
    stage, how = stage_of(config), found["finetuning_type"]
    if stage in ("rm", "ppo") and how in ("full", "freeze") and _tied(config):
        message = f"stage {stage}: LLaMA-Factory cannot save a {how} model whose embeddings are one with its head"
        yield Problem("LF-STRATEGY-083", message, where, "use lora, or another base")


def _tied(config: LlamaFactoryConfig) -> bool:
    folder = locate(config.base_model.huggingface_id or "").folder
    described = folder / "config.json" if folder else None
    if described is None or not described.is_file():
        return False
    return json.loads(described.read_text(encoding="utf-8")).get("tie_word_embeddings") is True


@dataclass(frozen=True, slots=True)
class _Rule:
    """A setting that LLaMA-Factory has not got: its path, whether it is on, why not, and what to do."""

    path: str
    on: bool
    reason: str
    hint: str = PYTORCH


def _rules(config: LlamaFactoryConfig, plan: RunPlan) -> Iterator[_Rule]:
    base, data, training = config.base_model, config.dataset, config.training
    yield _Rule("base_model.from_scratch", base.from_scratch is not None, "LLaMA-Factory trains models that exist")
    yield _Rule("base_model.add_pad_token", bool(base.add_pad_token), "LLaMA-Factory pads with what there is")
    tokens = "use arguments add_special_tokens and template"
    yield _Rule("base_model.add_chatml_tokens", base.add_chatml_tokens, "LLaMA-Factory adds no such tokens", tokens)
    chatml = "set template: chatml"
    yield _Rule(
        "base_model.add_chatml_prompt_template", base.add_chatml_prompt_template, "it has templates by name", chatml
    )
    named = f"set template: {base.template}, beside base_model: LLaMA-Factory's own names are given there"
    yield _Rule("base_model.template", base.template is not None, "it has templates of its own by name", named)
    dtype = "LLaMA-Factory chooses it by training.bf16, fp16 and the device"
    yield _Rule("base_model.torch_dtype", base.torch_dtype != "auto", dtype, "leave it out")
    if reason := tokenizes_itself(config):
        mask = f"with {reason} LLaMA-Factory reads the rows itself"
        ours = "use type: pytorch; or leave that out, and LLaMA-Factory is given our tokens"
        yield _Rule("dataset.over_long", data.over_long != "truncate", mask, ours)
        yield _Rule("dataset.prefix_ids", data.prefix_ids is not None, mask, ours)
        yield _Rule("dataset.suffix_ids", data.suffix_ids is not None, mask, ours)
    yield _Rule(
        "training.curriculum", training.curriculum is not None, "LLaMA-Factory shuffles rows, or takes them in order"
    )
    yield _Rule("training.packing_length", training.packing_length is not None, "packs are as long as max_seq_length")
    threshold = "any improvement counts for LLaMA-Factory"
    yield _Rule("training.early_stopping_threshold", bool(training.early_stopping_threshold), threshold)
    yield _Rule("training.use_cpu_offload", training.use_cpu_offload, "LLaMA-Factory has it with DeepSpeed alone")
    liger = "set enable_liger_kernel, as LLaMA-Factory calls it"
    yield _Rule("training.use_liger_kernel", training.use_liger_kernel, "LLaMA-Factory names it otherwise", liger)
    yield _Rule("training.activation_offloading", training.activation_offloading, "LLaMA-Factory offloads none")
    yield _Rule("training.torch_compile", training.torch_compile, "not passed on: untested with LLaMA-Factory")
    alive = "LLaMA-Factory's processes show no sign of life"
    heartbeat = training.heartbeat_timeout != type(training)().heartbeat_timeout
    yield _Rule("training.heartbeat_timeout", heartbeat, alive, "set ddp_timeout, as LLaMA-Factory calls its own")
    fp16 = training.fp16 and plan.device.type != "cuda"
    yield _Rule("training.fp16", fp16, f"fp16 needs CUDA; on {plan.device.type} LLaMA-Factory ignores it", "use bf16")
    yield _Rule("training.push_to_hub", training.push_to_hub, "LlamaFarm gives LLaMA-Factory no token to upload with")
    after = "afterwards: llamafarm evaluate"
    yield _Rule("evaluation.exact_match", config.evaluation.exact_match, "LLaMA-Factory does not measure it", after)


def _settings(config: LlamaFactoryConfig, plan: RunPlan) -> Findings:
    for rule in _rules(config, plan):
        if rule.on:
            path = next((given for given in plan.given if given.startswith(rule.path)), "")
            if path and plan.resume is None:  # a resumed run holds what was decided for it as if it were given
                yield Problem("LF-STRATEGY-084", f"{rule.path}: {rule.reason}", plan.given[path], rule.hint)
            else:
                yield Decision(rule.path, "off", rule.reason)
    if config.training.packing or config.neat_packing:
        reason = (
            "rows of a pack are kept apart by the attention mask; which rows share a pack is LLaMA-Factory's choice"
        )
        yield Decision("packing", "neat_packing", reason)
    if config.packing and not config.neat_packing:
        yield Decision("packing", "rows see one another", "LLaMA-Factory's packing; neat_packing keeps them apart")
    if reason := tokenizes_itself(config):
        why = f"with {reason} LLaMA-Factory reads the rows by its own template, and cuts those above max_seq_length"
        yield Decision("rows", "read by LLaMA-Factory", why)
        yield Decision("dataset.mask_audit", "not run", "its labels are seen by LLaMA-Factory alone")
    else:
        yield Decision("rows", "our tokens and labels", "what `llamafarm inspect` shows is what LLaMA-Factory learns")


def _arguments(config: LlamaFactoryConfig, plan: RunPlan, state: Installed | None) -> Findings:
    facts: Mapping[str, Any] = state.facts if state else {}
    known = {name for names in facts.get("arguments", {}).values() for name in names}
    for name, value in config.arguments.items():
        where = plan.given.get(f"arguments.{name}", "")
        if name in OURS:
            key = OURS[name]
            hint = f"set {key}" if key else "it is not supported: one process trains on one device"
            yield Problem("LF-STRATEGY-086", f"{name} is set by LlamaFarm", where, hint)
        elif name in _SWITCHES:
            if value is not _SWITCHES[name]:
                yield Problem("LF-STRATEGY-086", f"{name}: {value}: a run trains", where, "leave it out")
        elif known and name not in known:
            message = (
                f"LLaMA-Factory {state.versions.get('llamafactory', '') if state else ''} has no argument {name!r}"
            )
            yield Problem("LF-STRATEGY-087", message, where, nearest(name, known))
        elif name not in NATIVE and not where.startswith("--"):
            message = (
                f"the argument {name} of LLaMA-Factory may read, write, fetch or run what nobody here has looked at"
            )
            hint = f"if you know what it does, type it: --set arguments.{name}=VALUE"
            yield Problem("LF-SECURITY-020", message, where, hint)
    templates = facts.get("templates", ())
    if config.template and templates and config.template not in templates:
        hint = nearest(config.template, templates) or f"it has {', '.join(templates)}"
        message = f"LLaMA-Factory has no template {config.template!r}"
        yield Problem("LF-STRATEGY-088", message, plan.given.get("template", ""), hint)
    if config.use_unsloth and state and "unsloth" not in state.versions:
        message = "use_unsloth: the package unsloth is not installed in LLaMA-Factory's environment"
        yield Problem("LF-PLUGIN-078", message, plan.given.get("use_unsloth", ""), "leave it out")


def _evaluation(config: LlamaFactoryConfig, plan: RunPlan) -> Findings:
    training = config.training
    if not training.load_best_model_at_end:
        return
    found = training_arguments(training, held_out=True, device=plan.device.type)
    same = found["eval_strategy"] == found["save_strategy"] != "no"
    steps = found.get("save_steps", 0) % max(found.get("eval_steps", 1), 1) == 0
    if not (same and steps):
        message = "load_best_model_at_end: LLaMA-Factory needs a checkpoint at each evaluation it may choose"
        path = "training.load_best_model_at_end"
        hint = "give eval_strategy and save_strategy the same value, and save_steps a multiple of eval_steps"
        yield Problem("LF-STRATEGY-089", message, plan.given.get(path, ""), hint)


def _base(config: LlamaFactoryConfig, plan: RunPlan) -> Findings:
    base = config.base_model
    if base.huggingface_id and locate(base.huggingface_id).is_adapter:
        where = plan.given.get("base_model.huggingface_id", "")
        message = f"{base.huggingface_id} is an adapter: LLaMA-Factory is given whole models here"
        yield Problem("LF-STRATEGY-084", message, where, "merge it into its base first")
    if base.device_map:
        yield Decision("base_model.device_map", "not used", "in training the whole model is on one device per process")
    if plan.device.count > 1:
        yield Decision("devices", f"1 of {plan.device.count}", "this run uses one device")
    if plan.resume is not None and config.training.load_best_model_at_end:
        where = plan.given.get("training.load_best_model_at_end", "")
        message = "load_best_model_at_end: LLaMA-Factory loses sight of the best checkpoint when a run goes on"
        yield Problem("LF-RUN-041", message, where, "add --set training.load_best_model_at_end=false")
    if config.resume_from_checkpoint:
        folder = Path(config.resume_from_checkpoint).expanduser()
        if not (folder / "trainer_state.json").is_file():
            where = plan.given.get("resume_from_checkpoint", "")
            message = f"no checkpoint to go on from in {folder}: it has no trainer_state.json"
            yield Problem("LF-RUN-040", message, where, "name a folder checkpoint-N of a run with LLaMA-Factory")
