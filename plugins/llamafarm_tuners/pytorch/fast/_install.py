"""Which of the faster ways a model can take: each is tried on the model at hand, and undone when the run is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from llamafarm.api import RunContext
from llamafarm.models.inner import can_select_logits, transformers_model
from llamafarm_tuners.pytorch._batches import Batch, TokenRow, documents, in_one_row, padded
from llamafarm_tuners.pytorch._isolation import Probe, as_in_evaluation
from llamafarm_tuners.pytorch.fast._adapted import FastAdapted, adapted_layers
from llamafarm_tuners.pytorch.fast._attention import KERNEL, VARIABLE, register, stand_in
from llamafarm_tuners.pytorch.fast._decoder import FastLayer, refusal
from llamafarm_tuners.pytorch.fast._head import plain_head, skipped
from llamafarm_tuners.pytorch.fast._kernels import switched
from llamafarm_tuners.pytorch.fast._liger import liger_kernels
from llamafarm_tuners.pytorch.fast._linear import faster_products, ordered_copies

_REFUSALS = (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError, NotImplementedError)
"""How architectures answer to a call that they do not know."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What may be tried; everything, unless somebody compares."""

    documents: bool = True
    head: bool = True
    products: bool = True
    layers: bool = True
    adapters: bool = True
    compiled: bool = True
    liger: bool = False

    @classmethod
    def nothing(cls) -> Wanted:
        """The model's own ways alone."""
        return cls(documents=False, head=False, products=False, layers=False, adapters=False, compiled=False)


def _nothing() -> None:
    """Nothing to undo."""


@dataclass(frozen=True, slots=True)
class Paths:
    """How a model's batches are made and computed.

    Attributes:
        documents: Rows stand one after the other in one row instead of being padded.
        mask: What the model is given in place of a mask then.
        selective: The model computes logits at chosen positions alone.
        head: The head whose product with the loss is computed in chunks.
        ends: The last layer finishes the tokens alone at which there is something to learn.
        undo: Brings the model back before the end of the run.
    """

    documents: bool = False
    mask: torch.Tensor | None = None
    selective: bool = False
    head: nn.Module | None = None
    ends: bool = False
    undo: Callable[[], None] = _nothing

    def left(self) -> Paths:
        """How the model computes by itself, from now on."""
        self.undo()
        return Paths(selective=self.selective)

    def batch(self, rows: Sequence[TokenRow], pad_token_id: int, multiple: int = 1) -> Batch:
        """Rows as tensors."""
        if not self.documents:
            return padded(rows, pad_token_id, multiple)
        return replace(in_one_row(rows, self.mask), ends=self.ends)


@contextmanager
def fast_paths(
    model: nn.Module,
    rows: Sequence[TokenRow],
    device: torch.device,
    run: RunContext,
    wanted: Wanted | None = None,
    arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[Paths]:
    """While it lasts, the model computes in the fastest ways that give what it itself computes.

    Args:
        model: On its device.
        rows: All that will be learned or evaluated.
        device: The model's.
        run: Is told what was chosen, and why something was not.
        wanted: What may be tried.
        arithmetic: The context in which the model will compute: mixed precision or not.
    """
    wanted = wanted or Wanted()
    if wanted == Wanted.nothing():
        run.emit(
            "paths",
            batches="padded",
            head="the model's own",
            fused_layers=0,
            fused_adapters=0,
            ordered_copies=0,
            onednn_products=0,
            compiled_kernels="switched off",
        )
        yield Paths(selective=can_select_logits(model))
        return
    with ExitStack() as stack:
        told = stack.enter_context(switched(wanted.compiled))
        with as_in_evaluation(model), arithmetic():
            head = _head(model, rows, device) if wanted.head else None
            probe = Probe.of(model, rows, device)
            products = stack.enter_context(faster_products(model)) if wanted.products else 0
            reason: str | None = "switched off"
            if wanted.documents:
                reason = _documents(model, rows, device, probe, stack)
            apart = reason is None
            kernel = _kernel(model)
            mask = stand_in(kernel, device) if apart and kernel in (KERNEL, VARIABLE) else None
            liger = _liger(model, probe, device, mask if apart else None, stack) if wanted.liger else {}
            fused, why_not = (
                _layers(model, device, probe, mask, stack) if wanted.layers and apart else ([], "batches are padded")
            )
            adapted = _adapters(model, device, probe, (apart, mask), stack, fused) if wanted.adapters else []
            ordered = stack.enter_context(ordered_copies(_frozen_matrices([*fused, *adapted], head)))
            layers = len(fused)
        if reason and wanted.documents:
            run.emit("notice", message=f"batches are padded: {reason}")
        run.emit(
            "paths",
            batches="documents in one row" if apart else "padded",
            head="in chunks, at learned tokens" if head is not None else "the model's own",
            fused_layers=layers,
            fused_adapters=len(adapted),
            ordered_copies=ordered,
            **({"not_fused": why_not} if why_not and wanted.layers else {}),
            onednn_products=products,
            compiled_kernels=told,
            **liger,
        )
        yield Paths(apart, mask, can_select_logits(model), head, bool(layers), stack.close)


def _head(model: nn.Module, rows: Sequence[TokenRow], device: torch.device) -> nn.Module | None:
    """The model's head if it is one product, and the logits are what comes out of it."""
    head: nn.Module | None = transformers_model(model).get_output_embeddings()
    linear = plain_head(head)
    if head is None or linear is None or linear.weight.dtype == torch.float16:
        return None
    with skipped(head) as given:
        logits = model(**padded(rows[:1], 0).to(device).inputs, use_cache=False).logits
    return head if len(given) == 1 and logits is given[0] else None


def _documents(
    model: nn.Module, rows: Sequence[TokenRow], device: torch.device, probe: Probe, stack: ExitStack
) -> str | None:
    """Let the model compute documents in one row; return why it cannot, if so."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "the method puts something before the tokens"
    before = _kernel(model)
    config: Any = transformers_model(model).config
    text = config.get_text_config()
    windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    shortest = min((window for window in windows if window is not None), default=None)
    if shortest is not None:
        longest = max(len(one.input_ids) for row in rows for one in documents([row]))
        if shortest < longest:
            return f"rows of {longest:,} tokens are longer than the window of this model's attention"
    ours = before == "sdpa" or (before == "eager" and getattr(text, "attn_logit_softcapping", None) is not None)
    if not ours and "flash" not in str(before):
        return f"{before} attention does not keep documents apart"
    register()
    reason: str | None = ""
    for kernel in _kernels(model, device, text) if ours else (str(before),):
        transformers_model(model).set_attn_implementation(kernel)
        reason = _unlike(model, device, probe, stand_in(kernel, device) if ours else None)
        if reason is None:
            stack.callback(transformers_model(model).set_attn_implementation, before)
            return None
    transformers_model(model).set_attn_implementation(before)
    return reason


def _kernels(model: nn.Module, device: torch.device, text: Any) -> tuple[str, ...]:
    """Kernels to try in place of sdpa, the fastest first."""
    on = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if on else transformers_model(model).dtype
    half = dtype in (torch.bfloat16, torch.float16)
    plain = not getattr(text, "attention_dropout", 0.0) and getattr(text, "attn_logit_softcapping", None) is None
    variable = device.type == "cuda" and half and plain
    return (VARIABLE, KERNEL) if variable else (KERNEL,)


def _unlike(model: nn.Module, device: torch.device, probe: Probe, mask: torch.Tensor | None) -> str | None:
    """Why the model does not compute in one row what it computes otherwise; None if it does."""
    try:
        return probe.fault(model, device, mask)
    except torch.OutOfMemoryError:
        raise
    except _REFUSALS as error:
        return f"this architecture takes no documents in one row ({type(error).__name__}: {error})"


def _layers(
    model: nn.Module, device: torch.device, probe: Probe, mask: torch.Tensor | None, stack: ExitStack
) -> tuple[list[FastLayer], str]:
    """Replace the forward of decoder layers that have a faster one; return these, and why some have not."""
    found = [module for module in transformers_model(model).modules() if type(module).__name__.endswith("DecoderLayer")]
    if _mixed_on_float32(model, device):
        return [], "mixed precision on a base in float32"
    reasons = {id(layer): refusal(layer) for layer in found}
    with ExitStack() as trial:
        fast = [FastLayer(layer, last=layer is found[-1]) for layer in found if reasons[id(layer)] is None]
        for layer in fast:
            trial.callback(layer.release)
        fault = probe.fault(model, device, mask) if fast else None
        if fault is not None:
            return [], fault
        stack.enter_context(trial.pop_all())
    return fast, next((reason for reason in reasons.values() if reason), "" if found else "no decoder layers")


def _adapters(
    model: nn.Module,
    device: torch.device,
    probe: Probe,
    rows: tuple[bool, torch.Tensor | None],
    stack: ExitStack,
    fused: Sequence[FastLayer],
) -> list[FastAdapted]:
    """Replace the forward of layers with adapters outside of fused layers; return these.

    `rows`: whether documents stand in one row, and what the model is given in place of a mask then.
    """
    if _mixed_on_float32(model, device):
        return []
    inside = {id(module) for layer in fused for module in layer.layer.modules()}
    with ExitStack() as trial:
        fast = [FastAdapted(module) for module in adapted_layers(model) if id(module) not in inside]
        for one in fast:
            trial.callback(one.release)
        apart, mask = rows
        if fast and (_unlike(model, device, probe, mask) if apart else probe.change(model, device)) is not None:
            return []
        stack.enter_context(trial.pop_all())
    for one in fast:
        one.tried = False
    return fast


def _mixed_on_float32(model: nn.Module, device: torch.device) -> bool:
    """Whether products are in another format than a frozen base in float32."""
    exact = any(parameter.dtype == torch.float32 and not parameter.requires_grad for parameter in model.parameters())
    return exact and torch.is_autocast_enabled(device.type)


def _frozen_matrices(fused: Sequence[FastLayer | FastAdapted], head: nn.Module | None) -> list[torch.Tensor]:
    """Those that fused layers and adapters multiply with, and the head's."""
    found = [group.frozen.whole for layer in fused for group in layer.groups]
    plain = plain_head(head) if fused else None
    if plain is not None and not plain.weight.requires_grad:
        found.append(plain.weight)
    return [matrix for matrix in found if matrix is not None]


def _liger(
    model: nn.Module, probe: Probe, device: torch.device, mask: torch.Tensor | None, stack: ExitStack
) -> dict[str, object]:
    """Let Liger's kernels compute; return how many modules they are in, and why none, if so."""
    with ExitStack() as trial:
        try:
            modules = trial.enter_context(liger_kernels(transformers_model(model)))
            reason = probe.change(model, device) if mask is None else probe.fault(model, device, mask)
        except torch.OutOfMemoryError:
            raise
        except (*_REFUSALS, ImportError) as error:
            reason = f"they do not run here ({type(error).__name__}: {error})"
        else:
            reason = reason or (None if modules else "Liger does not know this architecture")
        if reason is None:
            stack.enter_context(trial.pop_all())
            return {"liger_modules": modules}
    return {"liger_modules": 0, "not_liger": reason}


def _kernel(model: nn.Module) -> str | None:
    kernel: str | None = getattr(transformers_model(model).config, "_attn_implementation", None)
    return kernel
