"""Runs that keep the optimizer in main memory, on a CPU that is treated as if it had a memory of its own."""

from __future__ import annotations

from typing import Any

import pytest

from llamafarm.api import ResumePoint
from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch import optim

pytestmark = pytest.mark.e2e

OPTIONS = {"optim": "adamw_torch_fused", "max_steps": 6, "lr_scheduler_type": "cosine", "weight_decay": 0.1}


class Stopping(RecordingRun):
    """Somebody asks to stop while the third step is taken."""

    def emit(self, type: str, /, **fields: Any) -> None:  # noqa: A002
        super().emit(type, **fields)
        self.stop_requested = self.stop_requested or (type == "log" and fields["step"] >= 3)


def result(fitted) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in fitted.folder.glob("*.safetensors")}


@pytest.mark.parametrize(
    "options",
    [{"options": {"dropout": 0.1}, "gradient_accumulation_steps": 2}, {"method": "full", "learning_rate": 1e-3}],
)
def test_losses_and_weights_are_the_same_to_the_last_bit(fit, monkeypatch, options):
    plain = fit(**OPTIONS, **options)
    assert plain.events("offload") == []
    unused = fit(**OPTIONS, **options, use_cpu_offload=True)
    assert unused.events("offload") == [], "on a CPU it changes nothing"
    monkeypatch.setattr(optim, "BESIDE_MAIN_MEMORY", {"cpu"})
    offloaded = fit(**OPTIONS, **options, use_cpu_offload=True)
    assert offloaded.events("offload") == [{"activations": False, "optimizer": True}]
    assert offloaded.losses == plain.losses
    assert result(offloaded) == result(plain)


@pytest.mark.parametrize(
    "options", [{"options": {"dropout": 0.1}}, {"method": "full", "pure_bf16": True, "learning_rate": 1e-4}]
)
def test_a_resumed_run_is_bit_identical(fit, monkeypatch, options):
    monkeypatch.setattr(optim, "BESIDE_MAIN_MEMORY", {"cpu"})
    settings = {**OPTIONS, **options, "use_cpu_offload": True, "save_strategy": "steps", "save_steps": 2}
    straight, folder = fit(**settings), fit.root / "stopped"
    with pytest.raises(KeyboardInterrupt):
        fit(folder=folder, run=Stopping, **settings)
    resumed = fit(folder=folder, resume=ResumePoint(), **settings)
    assert resumed.events("resumed") == [{"step": 3, "exact": True, "reasons": []}]
    assert result(resumed) == result(straight)
    last = "checkpoint-6/optimizer.safetensors"
    assert (resumed.folder / last).read_bytes() == (straight.folder / last).read_bytes()
