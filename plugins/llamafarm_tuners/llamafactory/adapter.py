"""How parameters are adapted, in LLaMA-Factory's words: from a method of ours, or from its own keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llamafarm.api import AdapterSpec, BaseModelConfig
from llamafarm.errors import Problem
from llamafarm_tuners.llamafactory.config import ADAPTER_KEYS, LlamaFactoryConfig

ID = "LF-STRATEGY-081"
_PLAIN = {
    "r": "lora_rank",
    "dropout": "lora_dropout",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "loraplus_lr_ratio": "loraplus_lr_ratio",
}
_FREEZE = ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules")
_HANDLED = {
    *_PLAIN,
    "dora_simple",
    *_FREEZE,
    "alpha",
    "target_modules",
    "modules_to_save",
    "init_lora_weights",
    "bias",
    "type",
}
Arguments = dict[str, Any]


def given_keys(config: LlamaFactoryConfig) -> list[str]:
    """The keys of LLaMA-Factory's own that say how parameters are adapted, as far as they are set."""
    return sorted(name for name in ADAPTER_KEYS if getattr(config, name) is not None)


def adapter_arguments(
    config: LlamaFactoryConfig, specs: tuple[AdapterSpec, ...], where: str
) -> tuple[Arguments, list[Problem]]:
    """LLaMA-Factory's arguments for the adapter and the base that it stands on, and what cannot be said in them."""
    native = given_keys(config)
    problems: list[Problem] = []
    if specs and native:
        message = f"method and {', '.join(native)} both say how parameters are adapted"
        problems.append(Problem("LF-STRATEGY-080", message, where, "keep method, or LLaMA-Factory's keys"))
    found = _from_method(specs[0], where, problems) if specs else _from_keys(config)
    found |= {key: value for key, value in _width(config.base_model).items() if key not in found}
    problems.extend(_clashes(found, where))
    return found, problems


def _from_keys(config: LlamaFactoryConfig) -> Arguments:
    found = {name: value for name in ADAPTER_KEYS if (value := getattr(config, name)) is not None}
    if found.get("finetuning_type") == "qlora":
        found["finetuning_type"] = "lora"
        found.setdefault("quantization_bit", 4)
    found.setdefault("finetuning_type", "lora")
    if isinstance(found.get("lora_alpha"), float):
        found["lora_alpha"] = int(found["lora_alpha"]) if found["lora_alpha"].is_integer() else found["lora_alpha"]
    return dict(sorted(found.items()))


def _from_method(spec: AdapterSpec, where: str, problems: list[Problem]) -> Arguments:
    options = dict(spec.options)
    if spec.kind == "full":
        found: Arguments = {"finetuning_type": "full"}
    elif spec.kind == "freeze":
        found = {"finetuning_type": "freeze"}
        found |= {name: value for name in _FREEZE if (value := _joined(options.get(name))) not in (None, "")}
    else:
        found = {"finetuning_type": "lora", **_lora(options, where, problems)}
        if spec.kind == "dora":
            found["use_dora"] = True
    problems.extend(
        _refused(name, value, where)
        for name, value in options.items()
        if name not in _HANDLED and value not in (None, False, (), [], {}, "", "none", 0)
    )
    return found | _quantized(spec.quantization, where, problems)


def _lora(options: Mapping[str, Any], where: str, problems: list[Problem]) -> Arguments:
    found = {theirs: options[ours] for ours, theirs in _PLAIN.items() if options.get(ours) not in (None, False)}
    alpha = options.get("alpha")
    if isinstance(alpha, int | float):
        if float(alpha).is_integer():
            found["lora_alpha"] = int(alpha)
        else:
            problems.append(_refused("alpha", alpha, where, "LLaMA-Factory takes whole numbers"))
    targets = options.get("target_modules", "auto")
    if isinstance(targets, str):
        if targets not in ("auto", "all", "all-linear"):
            problems.append(
                _refused("target_modules", targets, where, "name the modules: LLaMA-Factory has no patterns")
            )
        targets = "all"
    found["lora_target"] = _joined(targets)
    if options.get("modules_to_save"):
        found["additional_target"] = _joined(options["modules_to_save"])
    if options.get("bias", "none") != "none":
        problems.append(_refused("bias", options["bias"], where))
    if options.get("init_lora_weights", True) is not True:
        problems.append(_refused("init_lora_weights", options["init_lora_weights"], where))
    return found


def _quantized(given: Mapping[str, Any], where: str, problems: list[Problem]) -> Arguments:
    if given.get("load_in_8bit"):
        return {"quantization_bit": 8}
    if not given.get("load_in_4bit"):
        return {}
    if given.get("bnb_4bit_compute_dtype", "auto") != "auto":
        hint = "leave it out: LLaMA-Factory computes in the precision of training.bf16 or fp16"
        problems.append(_refused("bnb_4bit_compute_dtype", given["bnb_4bit_compute_dtype"], where, hint))
    return {
        "quantization_bit": 4,
        "quantization_type": given.get("bnb_4bit_quant_type", "nf4"),
        "double_quantization": bool(given.get("bnb_4bit_use_double_quant", True)),
    }


def _width(base: BaseModelConfig) -> Arguments:
    return {"quantization_bit": 4} if base.load_in_4bit else {"quantization_bit": 8} if base.load_in_8bit else {}


def _clashes(found: Arguments, where: str) -> Iterator[Problem]:
    """What LLaMA-Factory refuses itself, after it has loaded everything."""
    if found.get("quantization_bit") and found["finetuning_type"] not in ("lora", "oft"):
        message = f"quantization_bit: LLaMA-Factory cannot train {found['finetuning_type']} on a quantized base"
        yield Problem("LF-STRATEGY-082", message, where, "use finetuning_type: lora, or leave the quantization out")
    if found.get("quantization_bit") and found.get("use_dora"):
        message = "LLaMA-Factory cannot train DoRA on a quantized base"
        yield Problem("LF-STRATEGY-082", message, where, "use type: pytorch, which can")


def _refused(name: str, value: Any, where: str, hint: str = "use type: pytorch, which can") -> Problem:
    return Problem(ID, f"LLaMA-Factory has no way to say {name}: {value}", where, hint)


def _joined(value: Any) -> Any:
    """Names as LLaMA-Factory takes them: in one text."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value
