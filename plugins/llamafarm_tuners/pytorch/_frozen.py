"""The base of a run, in the format that the rule of `frozen.py` gives, once it was seen that it holds here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import PreTrainedModel

from llamafarm.api import RunPlan
from llamafarm.data.tokens import TokenizedRow
from llamafarm.models.checkpoint import read_manifest
from llamafarm.models.inner import can_select_logits
from llamafarm.models.locate import locate
from llamafarm.models.prequantized import described
from llamafarm.models.vocabulary import additions_of
from llamafarm_tuners.pytorch._batches import padded
from llamafarm_tuners.pytorch._evaluate import sum_over_processes
from llamafarm_tuners.pytorch._loss import token_losses
from llamafarm_tuners.pytorch.config import PytorchConfig
from llamafarm_tuners.pytorch.frozen import (
    GAIN,
    WIDEST,
    Choice,
    choice,
    hidden_size,
    known_gain,
    remember_gain,
    with_base,
)
from llamafarm_tuners.pytorch.precision import DType

TOLERANCE: Final = 5e-3
"""How far the loss may be off, as a share of it (of 1 where it is less): one step of bf16's 8 bits is 4e-3 to 8e-3, and
a mean over tokens has less."""
_TOKENS: Final = 256
_ROWS: Final = 64
_TURNS: Final = 5

Load = Callable[[PytorchConfig], PreTrainedModel]


def base_model(
    load: Load,
    config: PytorchConfig,
    plan: RunPlan,
    rows: Sequence[TokenizedRow],
    accelerator: Accelerator,
    begun: DType | None,
) -> tuple[PytorchConfig, PreTrainedModel, str]:
    """Load the base; where its format is open, in bf16 if that is faster here and the losses agree.

    Args:
        load: Loads it as a configuration says.
        config: The run's.
        plan: The run's.
        rows: What is learned.
        accelerator: The processes, which come to one verdict.
        begun: The format that the run began with and keeps; None: it begins.

    Returns:
        The configuration with the format in it, the model, and why that format; empty: it was asked for.
    """
    found = choice(config, plan)
    if found is None:
        return config, load(config), ""
    if begun is not None:
        config = with_base(config, begun)
        return config, load(config), "the format that the run began with"
    told = [_by_speed(found, config, plan)] if accelerator.is_main_process else [found]
    found = broadcast_object_list(told)[0]  # one measures for all, and what is on file may change meanwhile
    if found.dtype == "float32":
        config = with_base(config, "float32")
        return config, load(config), found.reason
    return _by_loss(load, found, config, rows, accelerator)


def begun_with(checkpoint: Path | None) -> DType | None:
    """The format of the base in the run that a checkpoint is of; before it was written down it was fp32."""
    manifest = read_manifest(checkpoint) if checkpoint else None
    if manifest is None:
        return None
    return "bfloat16" if manifest.identity.get("base_dtype") == "bfloat16" else "float32"


def _by_speed(found: Choice, config: PytorchConfig, plan: RunPlan) -> Choice:
    """The choice, if products in bf16 are faster here; measured once for a machine."""
    if found.dtype == "float32":
        return found
    base = config.base_model
    wide = hidden_size(described(locate(base.huggingface_id or ""), base))
    if known_gain(plan.device, wide) is not None:
        return found
    measured = _gain(min(wide, WIDEST))
    remember_gain(plan.device, wide, measured)
    if measured >= GAIN:
        return Choice("bfloat16", f"{found.reason} (products measured: {measured:.1f} times as fast)")
    return Choice("float32", f"measured on this machine: products in bfloat16 are {measured:.1f} times as fast")


def _gain(wide: int) -> float:
    """How many times as fast a product in bf16 is: the best of a few turns each, taken in turns."""
    best = {torch.float32: math.inf, torch.bfloat16: math.inf}
    sides = {dtype: (torch.ones(_ROWS, wide, dtype=dtype), torch.ones(3 * wide, wide, dtype=dtype)) for dtype in best}
    with torch.inference_mode():
        for _ in range(_TURNS):
            for dtype, (x, weight) in sides.items():
                started = time.perf_counter()
                nn.functional.linear(x, weight)
                best[dtype] = min(best[dtype], time.perf_counter() - started)
    return best[torch.float32] / best[torch.bfloat16]


def _by_loss(
    load: Load, found: Choice, config: PytorchConfig, rows: Sequence[TokenizedRow], accelerator: Accelerator
) -> tuple[PytorchConfig, PreTrainedModel, str]:
    """The base in bf16 if the loss of the first rows is that of the base in fp32."""
    base, narrow, wide = config.base_model, with_base(config, "bfloat16"), with_base(config, "float32")
    sizes = described(locate(base.huggingface_id or ""), base)
    short = (sizes.get("dtype") or sizes.get("torch_dtype")) == "bfloat16"
    model = load(narrow if short else wide)  # rounding what is rounded already takes nothing away
    with _in_full_precision(model):
        exact = _loss(model, rows)
    if not short and not rounded(model):
        del model
        model = load(narrow)
    off = abs(_loss(model, rows) - exact) / max(1.0, abs(exact))
    worst = torch.zeros(accelerator.num_processes, dtype=torch.float64)
    worst[accelerator.process_index] = off if math.isfinite(off) else math.inf
    off = float(sum_over_processes(worst, accelerator).max())
    if off <= TOLERANCE:
        agrees = f"the loss of the first rows is {off:.1g} off, at most {TOLERANCE:g} is allowed"
        return narrow, model, f"{found.reason}; {agrees}"
    del model
    why = f"in bfloat16 the loss of the first rows is {off:.1g} off, and at most {TOLERANCE:g} is allowed"
    return wide, load(wide), why


def rounded(model: PreTrainedModel) -> bool:
    """Round a model of fp32 to what loading it in bf16 gives; False where that may be more than to round its weights.

    Layers that stay in fp32, buffers (but frequencies of positions, always in fp32), rows of new tokens (means of rows
    that were rounded before), and weights that are not plain.
    """
    buffers = [name for name, value in model.named_buffers() if value.is_floating_point()]
    other = [name for name in buffers if not name.endswith("inv_freq")]
    more = (model._keep_in_fp32_modules_strict, model.config.sub_configs, additions_of(model), other)  # noqa: SLF001  # no other way to ask
    wide = all(parameter.dtype == torch.float32 for parameter in model.parameters())
    if any(more) or not wide or getattr(model, "hf_quantizer", None) is not None:
        return False
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    return True


def _loss(model: PreTrainedModel, rows: Sequence[TokenizedRow]) -> float:
    """The mean loss of the first tokens of the first rows; all of them count, also those that are not learned."""
    chosen, left = [], _TOKENS
    for row in rows:
        ids = list(row.input_ids)[:left]
        if len(ids) > 1:
            chosen.append(TokenizedRow(ids, ids))
            left -= len(ids)
        if left <= 1:
            break
    if not chosen:
        return 0.0
    batch, training = padded(chosen, 0), model.training
    model.eval()
    with torch.inference_mode():
        total, _ = token_losses(model, batch, selective=can_select_logits(model))
    model.train(training)
    return float(total) / batch.labels


@contextmanager
def _in_full_precision(model: nn.Module) -> Iterator[None]:
    """While it lasts, the model computes in fp32; of its layers only one at a time takes the memory for it."""
    layers = [layer for blocks in _outermost_lists(model) for layer in blocks]
    inner = {id(parameter) for layer in layers for parameter in layer.parameters()}
    others = [parameter for parameter in model.parameters() if id(parameter) not in inner]
    formats = {id(parameter): parameter.dtype for parameter in model.parameters()}

    def widen(parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.data = parameter.data.float()

    def narrow(parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.data = parameter.data.to(formats[id(parameter)])

    handles = []
    for layer in layers:
        own = list(layer.parameters())
        handles.append(layer.register_forward_pre_hook(partial(_hooked, widen, own)))
        handles.append(layer.register_forward_hook(partial(_hooked, narrow, own)))
    widen(others)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        narrow([*model.parameters()])


def _hooked(change: Callable[[list[nn.Parameter]], None], parameters: list[nn.Parameter], *_: Any) -> None:
    """A hook that leaves what goes through a layer alone."""
    change(parameters)


def _outermost_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    """The lists of layers, without those inside of layers."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost_lists(child)
