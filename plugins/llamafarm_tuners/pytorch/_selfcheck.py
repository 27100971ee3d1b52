"""Prove, on a strategy's own model and rows, that the fast ways compute what the slow one does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from llamafarm.api import PreparedData, RunContext, RunPlan
from llamafarm.errors import QualityError
from llamafarm.models._load import quiet
from llamafarm_tuners.pytorch._batches import Batch, TokenRow, documents
from llamafarm_tuners.pytorch._evaluate import autocast
from llamafarm_tuners.pytorch._fit import prepare, ways
from llamafarm_tuners.pytorch._isolation import computes_exactly, without_dropout
from llamafarm_tuners.pytorch._job import Fit, accelerator_for
from llamafarm_tuners.pytorch._loss import token_losses
from llamafarm_tuners.pytorch._model import moved
from llamafarm_tuners.pytorch._stability import process_switches
from llamafarm_tuners.pytorch._work import Work
from llamafarm_tuners.pytorch.config import PytorchConfig
from llamafarm_tuners.pytorch.fast._install import Paths, fast_paths
from llamafarm_tuners.pytorch.precision import autocast as autocast_of

EXACT, COARSE = 1e-4, 5e-2
"""Largest relative difference that is rounding: in float32 throughout, and where anything is coarser. Sums in another
order differ by some 1e-6 and 1e-2."""

_MOST_ROWS = 16
Found = tuple[float, dict[str, torch.Tensor]]


def selfcheck(config: PytorchConfig, plan: RunPlan, data: PreparedData, run: RunContext) -> dict[str, Any]:
    """Compare loss and gradients of the first rows, without dropout; then plant a fault and see it noticed.

    Returns:
        `rows`, `tokens`, `tolerance`, the relative differences `loss`, `gradients` and `planted_fault`, and `fault`:
        what was planted.

    Raises:
        QualityError: If a difference is more than rounding, or the fault was not noticed.
    """
    quiet()
    unmeasured = config.evaluation.model_copy(update={"exact_match": False})
    config = config.model_copy(update={"evaluation": unmeasured})
    accelerator = accelerator_for(plan, autocast_of(config.training, plan))
    with process_switches(config.training, plan):
        work, _ = prepare(Fit(config, plan, data, run, accelerator))
        try:
            result = _compare(work, plan, run)
        finally:
            for method in plan.methods:
                method.finish(work.trained.model, run)
    _judge(result)
    return result


def _compare(work: Work, plan: RunPlan, run: RunContext) -> dict[str, Any]:
    model = moved(work.trained.model, work.accelerator.device)
    without_dropout(model)
    _stir(model)
    rows = documents(work.rows[:_MOST_ROWS])[:_MOST_ROWS]
    exact = work.accelerator.mixed_precision == "no" and computes_exactly(model)
    expected = _slow(work, model, rows)
    wanted, device = ways(work.training, plan), work.accelerator.device
    with fast_paths(model, rows, device, run, wanted, work.accelerator.autocast) as paths:
        found = _fast(work, model, rows, paths, lambda batch: batch)
        broken = _fast(work, model, rows, paths, _joined if paths.documents else _mislabelled)
    loss, gradients = _differences(found, expected)
    return {
        "rows": len(rows),
        "tokens": sum(len(row.input_ids) for row in rows),
        "tolerance": EXACT if exact else COARSE,
        "loss": loss,
        "gradients": gradients,
        "fault": "documents joined" if paths.documents else "a label changed",
        "planted_fault": max(_differences(broken, expected)),
    }


def _stir(model: nn.Module) -> None:
    """Give trained weights that are born as zeros some values: behind zeros every mistake would be hidden."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.any():
                noise = torch.randn(parameter.shape, dtype=torch.float32).mul_(0.02)
                parameter.data.copy_(noise)


def _judge(result: Mapping[str, Any]) -> None:
    worst, allowed = max(result["loss"], result["gradients"]), result["tolerance"]
    if not worst <= allowed:
        raise QualityError.of(
            "LF-QUALITY-020",
            f"the fast ways compute something else: they differ by {worst:.2g}, allowed is {allowed:g}",
            hint="train with training.fused: false, and report it with the strategy",
        )
    if not result["planted_fault"] > allowed:
        message = f"the planted fault ({result['fault']}) makes a difference of {result['planted_fault']:.2g} only"
        raise QualityError.of("LF-QUALITY-021", message, hint="this check proves nothing here; give it longer rows")


def _slow(work: Work, model: nn.Module, rows: Sequence[TokenRow]) -> Found:
    """Row by row, as transformers and torch do it: all logits, nothing of ours."""
    total = 0.0
    for row in rows:
        ids, labels = (
            torch.tensor([list(part)], device=work.accelerator.device) for part in (row.input_ids, row.labels)
        )
        with autocast(work.accelerator):
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        loss = functional.cross_entropy(logits[0, :-1].float(), labels[0, 1:], ignore_index=-100, reduction="sum")
        loss.backward()
        total += loss.item()
    return total, _gradients(model)


def _fast(
    work: Work, model: nn.Module, rows: Sequence[TokenRow], paths: Paths, change: Callable[[Batch], Batch]
) -> Found:
    total = 0.0
    for start in range(0, len(rows), work.training.batch_size):
        batch = change(paths.batch(rows[start : start + work.training.batch_size], 0))
        with autocast(work.accelerator):
            batch = batch.to(work.accelerator.device)
            loss, _ = token_losses(model, batch, selective=paths.selective, head=paths.head)
        loss.backward()
        total += loss.item()
    return total, _gradients(model)


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def _differences(one: Found, other: Found) -> tuple[float, float]:
    """Of the losses, and of all gradients as one vector; relative."""
    apart = torch.stack([(one[1][name] - gradient).norm() for name, gradient in other[1].items()]).norm()
    size = torch.stack([gradient.norm() for gradient in other[1].values()]).norm()
    return abs(one[0] - other[0]) / max(abs(other[0]), 1e-30), float(apart / size.clamp_min(1e-30))


def _joined(batch: Batch) -> Batch:
    """All documents as if they were one."""
    assert batch.bounds is not None
    return replace(batch, bounds=batch.bounds[[0, -1]], longest=batch.tokens)


def _mislabelled(batch: Batch) -> Batch:
    """Every token is to be followed by itself."""
    learned = batch.targets != -100
    return replace(batch, targets=torch.where(learned, batch.input_ids, batch.targets))
