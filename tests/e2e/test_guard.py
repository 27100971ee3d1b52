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

from llamafarm.api import ResumePoint
from llamafarm.errors import NumericError
from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch import _step

pytestmark = pytest.mark.e2e

STEPS = 4


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


@pytest.mark.parametrize("where", ["weight", "loss", "grad", "batch"])
@pytest.mark.parametrize(("step", "value"), [*((step, math.nan) for step in range(1, STEPS + 1)), (2, math.inf)])
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
        assert facts["first_bad"].startswith("the output of base_model.model.model.layers.0")


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
    assert [losses[step] for step in (1, 2, 3)] == clean.losses[:3], "until it broke, nothing differs"
    assert losses[8] < losses[1], "it goes on learning"


def test_each_recovery_climbs_a_rung_and_the_last_ends_the_run(fit, monkeypatch):
    plant_always(monkeypatch, from_step=3)
    guard = {"policy": "recover", "snapshot_steps": 2, "max_recoveries": 4}
    flash = torch.backends.cuda.flash_sdp_enabled()
    with pytest.raises(NumericError, match=r"step 7: .*tried: skip, no-flash-sdpa, eager, lower-learning-rate"):
        fit(max_steps=10, bf16=False, guard=guard, lr_scheduler_type="constant")
    events = [event.fields for event in fit.last.events if event.type == "recovery"]
    assert [event["step"] for event in events] == [3, 4, 5, 6]
    assert [event["back_to"] for event in events] == [2, 2, 4, 4]
    assert [event["learning_rate"] for event in events] == pytest.approx([1e-2, 1e-2, 1e-2, 1e-3])
    assert torch.backends.cuda.flash_sdp_enabled() is flash, "switches of the process are put back"


def test_under_autocast_fp32_is_a_rung(fit, monkeypatch):
    plant_always(monkeypatch, from_step=2)
    guard = {"policy": "recover", "max_recoveries": 4}
    with pytest.raises(NumericError, match="tried: skip, no-flash-sdpa, eager, fp32"):
        fit(max_steps=10, bf16=True, guard=guard)


def plant_always(monkeypatch: pytest.MonkeyPatch, from_step: int, until: int = 10**9) -> None:
    check = _step.Guard.check

    def bad(guard: Any, step: int, figures: Any) -> bool:
        return check(guard, step, figures._replace(loss=math.nan) if from_step <= step <= until else figures)

    monkeypatch.setattr(_step.Guard, "check", bad)


DEEP = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 16,
    "initializer_range": 0.1,
    "rms_norm_eps": 1e-6,
}


def zero_the_first_position(monkeypatch: pytest.MonkeyPatch, steps: set[int] | None = None) -> None:
    """Take the first position's stream out of a deep model without biases: each norm's backward pass multiplies by
    1/sqrt(eps) there, and after 16 layers the gradient is infinite while the loss is fine."""
    now = {"step": 0}
    gradient, take = _step.Stepper.gradient, _step.Stepper._take

    def taken(stepper: Any, number: int, rows: Any) -> Any:
        now["step"] = number
        return take(stepper, number, rows)

    def zeroed(stepper: Any, batches: Any) -> Any:
        def hook(_module: nn.Module, _given: Any, output: torch.Tensor) -> torch.Tensor:
            mask = torch.ones(output.shape[1], 1)
            mask[0] = 0.0
            return output * mask

        if steps is not None and now["step"] not in steps:
            return gradient(stepper, batches)
        handle = stepper.work.trained.model.get_input_embeddings().register_forward_hook(hook)
        try:
            return gradient(stepper, batches)
        finally:
            handle.remove()

    monkeypatch.setattr(_step.Stepper, "_take", taken)
    monkeypatch.setattr(_step.Stepper, "gradient", zeroed)


def test_a_deep_model_driven_to_nan_is_stopped_before_its_weights_change(fit, monkeypatch, scratch):
    zero_the_first_position(monkeypatch)
    with pytest.raises(NumericError, match=r"step 1: the gradient's norm is (nan|inf).*LF-NUMERIC-002"):
        fit("full", base=scratch(**DEEP), learning_rate=1e-3, max_steps=3)
    facts = json.loads((fit.root / "output-1/llamafarm/broken-step-1/step.json").read_text())
    # backwards it grows from layer to layer; rounding decides whether the first layer or what is before it overflows
    assert facts["first_bad"].startswith(("the gradient at model.layers.", "the gradient at model.embed_tokens"))
    assert math.isfinite(facts["loss"])


def test_a_deep_model_driven_to_nan_recovers_and_ends_finite(fit, monkeypatch, scratch):
    zero_the_first_position(monkeypatch, steps={3, 4})
    done = fit(
        "full", base=scratch(**DEEP), learning_rate=1e-3, max_steps=8, guard={"policy": "recover", "snapshot_steps": 1}
    )
    assert [(event["step"], event["remedy"]) for event in done.events("recovery")] == [
        (3, "skip"),
        (4, "no-flash-sdpa"),
    ]
    assert tensors_are_finite(done.folder)
    assert done.losses[-1] < done.losses[0]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_healthy_run_is_silent_and_the_same_with_the_guard_on_and_off(fit, method):
    runs = []
    for guard in ("off", "stop", "recover"):
        config = {"policy": guard, "anomalies": "recover" if guard == "recover" else "warn", "snapshot_steps": 3}
        options = {"dropout": 0.1} if method == "lora" else {}
        done = fit(method, options, max_steps=12, learning_rate=2e-3, guard=config)
        assert done.events("warning") == []
        assert done.events("recovery") == []
        runs.append((done.losses, [file.read_bytes() for file in sorted(done.folder.glob("*.safetensors"))]))
    assert runs[0] == runs[1] == runs[2]


def test_hundreds_of_clean_steps_raise_no_alarm(fit):
    done = fit(max_steps=300, held_out=4, eval_strategy="no", learning_rate=2e-3, logging_steps=5)
    assert done.events("warning") == []


def test_what_is_odd_is_worth_a_warning_once(fit, monkeypatch):
    check = _step.Guard.check

    def jump(guard: Any, step: int, figures: Any) -> bool:
        odd = step in (30, 31)
        return check(guard, step, figures._replace(loss=figures.loss * 100, grad_norm=2e4) if odd else figures)

    monkeypatch.setattr(_step.Guard, "check", jump)
    done = fit(max_steps=35, learning_rate=1e-4)
    assert [(event["kind"], event["step"]) for event in done.events("warning")] == [
        ("spike", 30),
        ("gradient-explosion", 30),
    ]
    with pytest.raises(NumericError, match=r"step 30: .*deviations above.*LF-NUMERIC-011"):
        fit(max_steps=35, learning_rate=1e-4, guard={"anomalies": "stop"})


def test_a_loss_of_zero_and_a_gradient_out_of_range_can_stop_a_run(fit, monkeypatch):
    with pytest.raises(NumericError, match=r"step 1: the gradient's norm is .* above 0\.01.*LF-NUMERIC-012"):
        fit(max_steps=3, guard={"anomalies": "stop", "grad_norm_max": 0.01})
    check = _step.Guard.check
    monkeypatch.setattr(_step.Guard, "check", lambda g, step, figures: check(g, step, figures._replace(loss=0.0)))
    with pytest.raises(NumericError, match=r"step 1: the loss is exactly 0.*LF-NUMERIC-010"):
        fit(max_steps=3, guard={"anomalies": "stop"})


def test_with_warn_the_step_is_left_out(fit, monkeypatch):
    plant(monkeypatch, "grad", 3, math.nan)
    done = fit(max_steps=5, guard={"policy": "warn"})
    assert [(event["kind"], event["step"]) for event in done.events("warning")] == [("non-finite", 3)]
    assert [event["step"] for event in done.events("log")] == [1, 2, 4, 5]
    assert tensors_are_finite(done.folder)


def test_a_run_that_recovered_is_resumed_exactly(fit, monkeypatch):
    plant_always(monkeypatch, from_step=4, until=5)
    options = {
        "max_steps": 9,
        "save_strategy": "steps",
        "save_steps": 3,
        "lr_scheduler_type": "linear",
        "guard": {"policy": "recover", "snapshot_steps": 2},
    }
    straight = fit("lora", {"dropout": 0.1}, **options)
    assert [(event["step"], event["remedy"]) for event in straight.events("recovery")] == [
        (4, "skip"),
        (5, "no-flash-sdpa"),
    ]

    class Stopping(RecordingRun):
        def emit(self, type: str, /, **fields: Any) -> None:  # noqa: A002
            super().emit(type, **fields)
            self.stop_requested = self.stop_requested or (type == "log" and fields["step"] == 6)

    folder = fit.root / "stopped"
    with pytest.raises(KeyboardInterrupt):
        fit("lora", {"dropout": 0.1}, **options, folder=folder, run=Stopping)
    again = fit("lora", {"dropout": 0.1}, **options, folder=folder, resume=ResumePoint())
    assert [event["step"] for event in again.events("log")] == [7, 8, 9]
    name = "adapter_model.safetensors"
    assert (folder / name).read_bytes() == (straight.folder / name).read_bytes()
