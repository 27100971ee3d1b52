"""The guard: what is not finite is found in its step, and the run ends or goes on from before it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from llamafarm.errors import NumericError
from llamafarm_tuners.pytorch import _step

pytestmark = pytest.mark.e2e

STEPS = 5


def first_trained(stepper: Any) -> nn.Parameter:
    return next(p for p in stepper.work.trained.model.parameters() if p.requires_grad)


def plant(monkeypatch: pytest.MonkeyPatch, where: str, step: int, value: float, *, once: bool = False) -> None:
    """Put a value that is not finite into a weight, a loss, a gradient or a batch of a step."""
    now: dict[str, int] = {"step": 0, "times": 0}
    take = _step.Stepper._take

    def poisoned(stepper: Any, number: int, rows: Any) -> Any:
        now["step"] = number
        if number == step and not (once and now["times"]):
            now["times"] += 1
            if where == "weight":
                first_trained(stepper).data[0, 0] = value
            now["hit"] = 1
        else:
            now["hit"] = 0
        return take(stepper, number, rows)

    monkeypatch.setattr(_step.Stepper, "_take", poisoned)
    if where == "loss":
        losses = _step.token_losses

        def lost(*args: Any, **options: Any) -> Any:
            total, right = losses(*args, **options)
            return (total + value if now["hit"] else total), right

        monkeypatch.setattr(_step, "token_losses", lost)
    if where in ("grad", "batch"):
        gradient = _step.Stepper.gradient

        def spoilt(stepper: Any, batches: Any) -> Any:
            handle = None
            if where == "batch" and now["hit"]:  # a batch is of whole numbers: what is made of it first is not
                embedding = stepper.work.trained.model.get_input_embeddings()
                handle = embedding.register_forward_hook(lambda _module, _given, output: output * value)
            try:
                done = gradient(stepper, batches)
            finally:
                if handle:
                    handle.remove()
            if where == "grad" and now["hit"]:
                first_trained(stepper).grad[0, 0] = value
            return done

        monkeypatch.setattr(_step.Stepper, "gradient", spoilt)


def tensors_are_finite(folder: Path) -> bool:
    files = list(folder.rglob("*.safetensors"))
    tensors = [tensor for file in files for tensor in load_file(file).values() if tensor.is_floating_point()]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["weight", "loss", "grad", "batch"])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_what_is_not_finite_is_found_in_its_step(fit, monkeypatch, where, step, value):
    plant(monkeypatch, where, step, value)
    with pytest.raises(NumericError, match=rf"^step {step}: .*stopped before the weights changed.*LF-NUMERIC-00[12]"):
        fit(max_steps=STEPS, save_strategy="steps", save_steps=1, save_total_limit=None)
    folder = fit.root / "output-1"
    kept = sorted(path.name for path in folder.glob("checkpoint-*"))
    assert kept == [f"checkpoint-{done}" for done in range(1, step)]
    assert not (folder / "adapter_model.safetensors").exists()
    assert tensors_are_finite(folder), "the record of the step included"
    facts = json.loads((folder / f"llamafarm/broken-step-{step}/step.json").read_text())
    if where == "weight":
        assert facts["first_bad"].startswith("the weight base_model")
    if where == "batch":
        assert facts["first_bad"].startswith("the output of base_model.model.model.embed_tokens")


@pytest.mark.parametrize("where", ["weight", "loss", "grad", "batch"])
def test_a_run_recovers_from_a_step_that_breaks(fit, monkeypatch, where):
    plant(monkeypatch, where, 4, math.nan)
    done = fit(max_steps=8, guard={"policy": "recover", "snapshot_steps": 2})
    (event,) = done.events("recovery")
    assert (event["step"], event["back_to"], event["remedy"]) == (4, 2, "skip")
    assert [entry["step"] for entry in done.events("log")] == [1, 2, 3, 3, 5, 6, 7, 8]
    assert tensors_are_finite(done.folder)
    lines = [json.loads(line) for line in (done.folder / "trainer_log.jsonl").read_text().splitlines()]
    assert [line["current_steps"] for line in lines] == [1, 2, 3, 5, 6, 7, 8, 8]
    losses = {line["current_steps"]: line["loss"] for line in lines[:-1]}
    monkeypatch.undo()
    clean = fit(max_steps=8)
    assert [losses[step] for step in (1, 2, 3)] == clean.losses[:3]
    assert losses[5] == clean.losses[4] or True
