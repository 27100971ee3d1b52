"""How many parameters a method trains, from what it declares and the model's sizes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llamafarm.api import AdapterSpec
from llamafarm.estimate.architecture import Architecture, Linear

_EVERYTHING = frozenset({"auto", "all", "all-linear", "aggressive"})
_FUSED = frozenset({"qkv_proj", "query_key_value", "c_attn"})
_TIERS = MappingProxyType(
    {
        "conservative": _FUSED | {"q_proj", "v_proj"},
        "balanced": _FUSED | {"q_proj", "k_proj", "v_proj"},
    }
)
_OF_MLP = ("gate", "up_", "down", "h_to_4h", "4h_to_h", "c_fc", "fc1", "fc2")


@dataclass(frozen=True, slots=True)
class Trained:
    """What is trained.

    Attributes:
        adapters: Parameters of adapters.
        base: Parameters of the base itself, or copies of them, that are trained.
        share: The part of the layers' own parameters that is trained, 0 to 1.
        head: Whether the output head is trained.
        norms: Whether normalizations are trained.
        adapted: Linear layers with an adapter, each with the number of transformer layers that have one.
        dropout: Of the adapters' inputs.
        notes: What was assumed.
    """

    adapters: int = 0
    base: int = 0
    share: float = 0.0
    head: bool = False
    norms: bool = False
    adapted: tuple[tuple[Linear, int], ...] = ()
    dropout: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """All that are trained."""
        return self.adapters + self.base


def trained(architecture: Architecture, specs: Sequence[AdapterSpec]) -> Trained:
    """What a stack of methods trains."""
    found = Trained()
    for spec in specs:
        part = _trained(architecture, spec)
        found = part if part.parameters >= found.parameters else found
    return found


def _trained(architecture: Architecture, spec: AdapterSpec) -> Trained:
    if spec.kind == "full":
        return Trained(base=architecture.parameters, share=1.0, head=True, norms=True)
    if spec.kind == "freeze":
        return _freeze(architecture, spec.options)
    if prompt := _PROMPTS.get(spec.kind):
        return Trained(prompt(architecture, spec.options))
    targets = tuple(_targets(architecture, spec.options))
    count = _COUNTS.get(spec.kind)
    notes: tuple[str, ...] = ()
    if count is None:
        count = _COUNTS["lora"]
        notes = (f"how many parameters {spec.kind} trains is not known here: counted as LoRA of rank 8",)
        adapters = sum(layers * count(linear, {"r": 8}) for linear, layers in targets)
    else:
        options = spec.options
        adapters = sum(layers * count(linear, _with_rank(linear, options)) for linear, layers in targets)
    saved = tuple(spec.options.get("modules_to_save") or ())
    head = any("head" in name or "embed_out" in name for name in saved)
    embedding = any("embed" in name and "embed_out" not in name for name in saved)
    rows = architecture.vocabulary * architecture.hidden * (head + embedding)
    dropout = next((float(value) for name, value in spec.options.items() if name.endswith("dropout") and value), 0.0)
    return Trained(adapters, rows, head=head, adapted=targets, dropout=dropout, notes=notes)


def _with_rank(linear: Linear, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of one layer: `rank_pattern` may give it a rank of its own."""
    for name, rank in (options.get("rank_pattern") or {}).items():
        if name == linear.name or re.fullmatch(rf"(.*\.)?({name})", path_of(linear)):
            return {**options, "r": rank}
    return options


def _lora(linear: Linear, options: Mapping[str, Any]) -> int:
    magnitude = linear.outputs if options.get("use_dora") else 0
    return int(linear.count * (int(options["r"]) * (linear.inputs + linear.outputs) + magnitude))


def _ia3(linear: Linear, options: Mapping[str, Any]) -> int:
    within = any(linear.name == name for name in options.get("feedforward_modules") or ())
    return linear.count * (linear.inputs if within else linear.outputs)


def _boft(linear: Linear, options: Mapping[str, Any]) -> int:
    size = int(options["boft_block_size"]) or linear.inputs // int(options["boft_block_num"])
    return linear.count * (int(options["boft_n_butterfly_factor"]) * linear.inputs * size + linear.outputs)


def _encoder(architecture: Architecture, options: Mapping[str, Any]) -> int:
    """The network of p-tuning: an MLP of three layers, or an LSTM in both directions and an MLP of two."""
    hidden, width = architecture.hidden, int(options["encoder_hidden_size"] or architecture.hidden)
    embedded = int(options["num_virtual_tokens"]) * hidden
    if options["encoder_reparameterization_type"] == "MLP":
        return embedded + _dense(hidden, width) + _dense(width, width) + _dense(width, hidden)
    inputs = [hidden, *[2 * width] * (int(options["encoder_num_layers"]) - 1)]
    lstm = sum(2 * 4 * (_dense(one, width) + _dense(width, width)) for one in inputs)
    return embedded + lstm + _dense(2 * width, 2 * width) + _dense(2 * width, hidden)


def _dense(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


_PROMPTS: Mapping[str, Callable[[Architecture, Mapping[str, Any]], int]] = MappingProxyType(
    {
        "p-tuning": _encoder,
        "prompt-tuning": lambda model, options: int(options["num_virtual_tokens"]) * model.hidden,
        "prefix-tuning": lambda model, options: (
            int(options["num_virtual_tokens"]) * model.layers * 2 * model.kv_heads * model.head_dim
        ),
    }
)
"""Kind → trained parameters of a method that adapts no layer."""

_COUNTS: Mapping[str, Callable[[Linear, Mapping[str, Any]], int]] = MappingProxyType(
    {
        "lora": _lora,
        "dora": _lora,
        "ia3": _ia3,
        "adalora": lambda linear, options: linear.count * int(options["init_r"]) * (linear.inputs + linear.outputs + 1),
        "boft": _boft,
        "loha": lambda linear, options: linear.count * 2 * int(options["r"]) * (linear.inputs + linear.outputs),
        "hra": lambda linear, options: linear.count * int(options["r"]) * linear.inputs,
        "vera": lambda linear, options: linear.count * (int(options["r"]) + linear.outputs),
        "fourierft": lambda linear, options: linear.count * int(options["n_frequency"]),
        "miss": lambda linear, options: linear.count * int(options["r"]) * linear.outputs,
    }
)
"""Kind → trained parameters of one adapted layer."""


def _targets(architecture: Architecture, options: Mapping[str, Any]) -> Iterator[tuple[Linear, int]]:
    wanted, excluded = options.get("target_modules", "auto"), options.get("exclude_modules") or ()
    chosen = options.get("layers_to_transform")
    layers = architecture.layers if chosen is None else len([index for index in chosen if index < architecture.layers])
    for linear in architecture.linears:
        if _matches(linear, wanted) and not (excluded and _matches(linear, excluded)):
            yield linear, layers


def _matches(linear: Linear, wanted: str | Sequence[str]) -> bool:
    if isinstance(wanted, str) and wanted in _EVERYTHING:
        return True
    if isinstance(wanted, str) and wanted in _TIERS:
        return linear.name in _TIERS[wanted]
    if isinstance(wanted, str):
        return bool(re.fullmatch(rf"(.*\.)?({wanted})", path_of(linear)))
    return any(path_of(linear).endswith(f".{name}") for name in wanted)


def path_of(linear: Linear) -> str:
    """A path such as the layer has in most models, for patterns."""
    block = "mlp" if any(part in linear.name for part in _OF_MLP) else "self_attn"
    return f"model.layers.0.{block}.{linear.name}"


def _freeze(architecture: Architecture, options: Mapping[str, Any]) -> Trained:
    layers = min(abs(int(options.get("freeze_trainable_layers", 2))), architecture.layers)
    names = tuple(options.get("freeze_trainable_modules") or ("all",))
    inside = [linear for linear in architecture.linears if "all" in names or _within(linear, names)]
    norms = architecture.norms if "all" in names else 0
    extra = tuple(options.get("freeze_extra_modules") or ())
    matrices = {name for name in extra if "embed" in name or "head" in name or name in ("wte", "embed_out")}
    outside = architecture.vocabulary * architecture.hidden * (1 if architecture.tied and matrices else len(matrices))
    base = layers * (sum(linear.parameters for linear in inside) + norms) + outside
    share = layers * sum(linear.parameters for linear in inside) / max(architecture.linear_parameters, 1)
    return Trained(base=base, share=share, head=bool(matrices), norms=bool(norms))


def _within(linear: Linear, names: Sequence[str]) -> bool:
    path = f"{path_of(linear)}."
    return any(f".{name}." in path for name in names)
