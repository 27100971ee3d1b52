"""EVA: A starts as the directions in which the layers' inputs vary most, and ranks go where they explain most.

https://arxiv.org/abs/2410.07170, computed by PEFT.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from llamafarm.api import RunContext, TrainingStart
from llamafarm.errors import ModelError
from llamafarm.models._adapter import repeatable
from llamafarm_methods.beginnings import EvaConfig
from llamafarm_methods.config import LoraConfig

_RANKS = "llamafarm_eva_ranks"
_MOST_BATCHES = 512
"""Batches that are kept to go through them again."""
_ROWS = 8
"""Rows of a batch, at least: of fewer, two batches look alike before anything has settled."""
_PASSES = 20
_FEWEST = 200

Batch = Mapping[str, Any]


def begin(model: Any, config: LoraConfig, start: TrainingStart, run: RunContext) -> None:
    """Measure the rows, and give each layer its directions and its rank.

    Raises:
        ModelError: If there are too few rows, or what is measured does not settle.
    """
    options = config.eva_config or EvaConfig()
    layers = _layers(model)
    before = {path: int(layer.r["default"]) for path, layer in layers.items()}
    batches = _batches(start, max(round(rank * options.rho) for rank in before.values()), layers, options)
    with _as_eva(model, options):
        peft.initialize_lora_eva_weights(
            model, batches, forward_fn=_bounded(len(batches)), gather_distributed_inputs=False, show_progress_bar=False
        )
    after = {path: int(layer.r["default"]) for path, layer in _layers(model).items()}
    _keep(model, {path: after.get(path, 0) for path in before})
    left_out = len(before) - len(after)
    message = f"eva: ranks from {min(after.values())} to {max(after.values())} by what {len(layers)} layers are given"
    run.emit("notice", message=f"{message}; {left_out} of them got none and stay as they are" if left_out else message)


def state(model: nn.Module) -> Mapping[str, Any]:
    """The rank of each layer."""
    ranks: Mapping[str, int] = getattr(model, _RANKS, {})
    return {"ranks": dict(ranks)} if ranks else {}


def load_state(model: nn.Module, config: LoraConfig, kept: Mapping[str, Any]) -> None:
    """Give each layer the rank that it had; nothing, if it has it."""
    if getattr(model, _RANKS, None) is not None or "ranks" not in kept:  # of another start: refused later
        return
    layers, ranks = _layers(model), kept["ranks"]
    empty = {path: torch.zeros(rank, layers[path].in_features) for path, rank in ranks.items() if path in layers}
    with _as_eva(model, config.eva_config or EvaConfig()):
        peft.initialize_lora_eva_weights(model, eva_state_dict=empty)
    _keep(model, ranks)


def put_back(_model: nn.Module, _folder: Path) -> bool:
    """Nothing: what is saved is what is trained."""
    return False


def written(_model: nn.Module, _folder: Path) -> None:
    """Nothing: what is saved is what is trained."""


def _keep(model: nn.Module, ranks: Mapping[str, int]) -> None:
    setattr(model, _RANKS, dict(ranks))


@contextmanager
def _as_eva(model: Any, options: EvaConfig) -> Iterator[None]:
    """While it lasts, PEFT may give layers other ranks; before and after it is a LoRA like any other."""
    settings = model.peft_config["default"]
    settings.init_lora_weights, settings.eva_config = "eva", peft.EvaConfig(**options.model_dump())
    try:
        with repeatable(), warnings.catch_warnings():
            # biases that are to be trained are still those of the base
            warnings.filterwarnings("ignore", message="Careful, disabling adapter layers", category=UserWarning)
            yield
    finally:
        settings.init_lora_weights, settings.eva_config = True, None


def _layers(model: nn.Module) -> dict[str, LoraLayer]:
    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLayer)}


def _batches(start: TrainingStart, needed: int, layers: Mapping[str, LoraLayer], options: EvaConfig) -> list[Batch]:
    """Batches with as many measured tokens as directions are looked for."""
    path, narrowest = min(((path, layer.in_features) for path, layer in layers.items()), key=lambda item: item[1])
    if needed > narrowest:
        message = (
            f"eva looks for {needed} directions (r times rho) in the {narrowest} inputs of {path.partition('.')[2]}"
        )
        raise ModelError.of("LF-MODEL-200", message, hint="lower r, or eva_config.rho")
    which = "labels" if options.use_label_mask else "attention_mask"
    size, previous = _ROWS, 0
    while True:
        found = list(islice(start.batches(size), _MOST_BATCHES))
        enough = [batch for batch in found if _measured(batch, which) >= needed]
        if len(enough) >= max(1, len(found) - 1):
            return enough
        if len(found) == previous == 1:
            have = _measured(found[0], which)
            message = f"eva looks for {needed} directions (r times rho), and the rows have {have} tokens to look at"
            hint = "more rows, a lower r, or eva_config.rho: 1; eva_config.use_label_mask: false takes all tokens"
            raise ModelError.of("LF-MODEL-201", message, hint=hint)
        size, previous = size * 2, len(found)


def _measured(batch: Batch, which: str) -> int:
    tokens: torch.Tensor = batch[which]
    return int((tokens != -100).sum() if which == "labels" else tokens.sum())


def _bounded(batches: int) -> Callable[[nn.Module, Batch], Any]:
    """A forward pass that gives up in the end: PEFT measures until it settles, if ever."""
    most, passes = max(_FEWEST, _PASSES * batches), 0

    def forward(model: nn.Module, batch: Batch) -> Any:
        nonlocal passes
        passes += 1
        if passes > most:
            message = f"eva: the directions have not settled after {most} batches"
            raise ModelError.of("LF-MODEL-202", message, hint="lower eva_config.tau or eva_config.rho, or r")
        return model(**_inputs(batch))

    return forward


def _inputs(batch: Batch) -> dict[str, Any]:
    return {**{name: value for name, value in batch.items() if name != "labels"}, "use_cache": False}
