"""In which format a processor keeps a frozen base when nobody said: the rule, and what was measured. Imports no torch.

bf16 where all of this holds, else fp32:
- the processor has instructions for products in bf16;
- the base is frozen, not packed, and under LoRA that leaves its weights as they are;
- its matrices are wide enough (`NARROWEST`), so that products take longer than calling them;
- the products of this model's width were faster, measured once on this machine (`_frozen.py`);
- the losses of its first rows agree (`_frozen.py`).
The first three can be told from the strategy and `config.json`. A run that goes on keeps what it began with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, NamedTuple

from llamafarm.api import BaseModelConfig, DeviceSpec, FineTunerConfig, RunPlan
from llamafarm.errors import LlamaFarmError
from llamafarm.estimate.calibration import enabled, folder
from llamafarm.files import write_atomically
from llamafarm.models.locate import locate
from llamafarm.models.prequantized import described
from llamafarm_tuners.pytorch.config import PytorchConfig
from llamafarm_tuners.pytorch.precision import DType, autocast, trains_parts

NARROWEST: Final = 256
"""Hidden size from which bf16 pays: at 128, products of few tokens take longer in it (docs/hardware.md has figures)."""
WIDEST: Final = 1024
"""Wider products are not timed: what holds for these holds for them."""
GAIN: Final = 1.2
"""How many times as fast a product in bf16 has to be."""
_FILE: Final = "products.json"
_PLAIN_STARTS: Final = (True, False, "true", "false", "gaussian", "default")
"""Ways to begin an adapter that leave the base's weights alone; others take a part out of them, in fp32."""


class Choice(NamedTuple):
    """A format, and why."""

    dtype: DType
    reason: str


def choice(config: FineTunerConfig, plan: RunPlan, sizes: Mapping[str, Any] | None = None) -> Choice | None:
    """The format of a frozen base by the rule; None where there is nothing to choose.

    Args:
        config: The fine-tuner's configuration.
        plan: What was decided.
        sizes: The model's `config.json`, where it is known; else it is looked for on this machine.
    """
    if not _open(config, plan):
        return None
    sizes = sizes or _on_this_machine(config.base_model)
    if sizes.get("quantization_config"):
        return None
    wide = hidden_size(sizes)
    if not wide:
        return Choice("float32", "the sizes of the model are not known yet: if it is wide enough, bfloat16")
    if wide < NARROWEST:
        return Choice("float32", f"the model is {wide} wide: bfloat16 pays from {NARROWEST} on")
    gain = known_gain(plan.device, wide)
    if gain is not None and gain < GAIN:
        return Choice("float32", f"measured on this machine: products in bfloat16 are {gain:.1f} times as fast")
    measured = f", measured: {gain:.1f} times as fast" if gain else ""
    reason = f"{plan.device.name} has instructions for it{measured}; trained weights and results stay float32"
    return Choice("bfloat16", reason)


def settled(config: PytorchConfig, plan: RunPlan, sizes: Mapping[str, Any] | None = None) -> PytorchConfig:
    """The configuration with the format by the rule in it."""
    found = choice(config, plan, sizes)
    return config if found is None else with_base(config, found.dtype)


def with_base(config: PytorchConfig, dtype: DType) -> PytorchConfig:
    """The configuration with a base in a format."""
    return config.model_copy(update={"base_model": config.base_model.model_copy(update={"torch_dtype": dtype})})


def _open(config: FineTunerConfig, plan: RunPlan) -> bool:
    """Whether the format is open: nobody chose, and both are possible."""
    base, training, device = config.base_model, config.training, plan.device
    if device.type != "cpu" or not device.details.get("bf16_instructions"):
        return False
    if base.torch_dtype != "auto" or base.huggingface_id is None or base.load_in_4bit or base.load_in_8bit:
        return False
    if training.pure_bf16 or autocast(training, plan) != "no" or trains_parts(plan):
        return False
    specs = [method.adapter() for method in plan.methods]
    return all(
        spec.kind == "lora"
        and not spec.changes_base
        and not spec.quantization
        and spec.options.get("init_lora_weights", True) in _PLAIN_STARTS
        for spec in specs
    )


def _on_this_machine(base: BaseModelConfig) -> Mapping[str, Any]:
    """The model's `config.json`; empty where it is not here, or cannot be: whoever loads it says so."""
    try:
        return described(locate(base.huggingface_id or ""), base)
    except LlamaFarmError:
        return {}


def hidden_size(sizes: Mapping[str, Any]) -> int:
    """A model's width by its `config.json`; 0: not told."""
    text = sizes.get("text_config") or sizes
    found = next((text[name] for name in ("hidden_size", "n_embd", "d_model") if name in text), 0)
    return found if isinstance(found, int) else 0


def known_gain(device: DeviceSpec, wide: int) -> float | None:
    """How many times as fast bf16 was on this machine, for products of this width; None: not measured."""
    found = _read().get(_key(device, wide)) if enabled() else None
    return float(found) if isinstance(found, int | float) and found > 0 else None


def remember_gain(device: DeviceSpec, wide: int, gain: float) -> None:
    """Keep a measurement, so that it is the last of its kind; whatever goes wrong is of no consequence."""
    if not enabled():
        return
    try:
        folder().mkdir(parents=True, exist_ok=True)
        known = {**_read(), _key(device, wide): round(gain, 3)}
        write_atomically(folder() / _FILE, json.dumps(known, indent=2) + "\n")
    except OSError:
        return


def _key(device: DeviceSpec, wide: int) -> str:
    """What a measurement holds for: a processor, a build of torch, a width."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "none"
    return f"{device.name}, torch {torch}, {min(wide, WIDEST)}"


def _read() -> dict[str, Any]:
    try:
        found = json.loads(Path(folder() / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
