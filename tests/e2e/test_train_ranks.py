"""A rank that grows in the middle of a real training, and what it leaves."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from llamafarm.errors import StrategyError
from llamafarm.testing.run_context import RecordingRun

pytestmark = pytest.mark.e2e

RANKS = {"ranks": [2, 4, 8], "dropout": 0.0}
ROW = torch.tensor([[1, 20, 30, 40, 50]])


def logits(folder, base):
    """By plain peft."""
    with torch.inference_mode():
        model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)).eval()
        return model(ROW).logits


@pytest.mark.parametrize("method", ["lora", "dora", "qlora"])
def test_each_rank_leaves_an_adapter_that_plain_peft_loads(fit, method):
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    done = fit(method, RANKS, max_steps=8)
    said = [event["message"] for event in done.events("notice") if event["message"].startswith("Training with rank")]
    assert said == [f"Training with rank {rank}" for rank in (2, 4, 8)]
    assert len(done.losses) == 8, "two steps, two, and the two that are left over with the last two"
    found = {}
    for rank, step in ((2, 2), (4, 4), (8, 8)):
        folder = done.folder / f"checkpoint_r{rank}"
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (rank, 2 * rank)
        assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == step
        found[rank] = logits(folder, done.model)
    assert not torch.equal(found[2], found[4])
    assert torch.equal(found[8], logits(done.folder, done.model)), "the last one is the result"
    assert json.loads((done.folder / "adapter_config.json").read_text())["r"] == 8
    (model,) = done.events("model")
    assert done.result.trainable_parameters > model["trainable_parameters"], "what is told at the end is the last rank"


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
@pytest.mark.parametrize("packing", [False, True])
def test_fused_layers_grow_as_the_models_own_do(fit, architecture, packing):
    options = {"architecture": architecture, "max_steps": 9, "learning_rate": 5e-3}
    if packing:
        options |= {"packing": True, "packing_length": 128, "max_seq_length": 64, "batch_size": 1}
    fused, plain = (fit("lora", RANKS, fused=on, **options) for on in (True, False))
    assert fused.events("paths")[0]["fused_layers"] == 2
    assert plain.events("paths")[0]["fused_layers"] == 0
    # float32 sums in another order, through nine updates of Adam, which divides by small numbers at first
    assert fused.losses == pytest.approx(plain.losses, rel=2e-4)
    assert fused.losses[-1] < fused.losses[0]


def test_the_best_model_may_have_a_rank_of_before(fit):
    done = fit(
        "lora",
        RANKS,
        max_steps=9,
        held_out=4,
        eval_strategy="steps",
        eval_steps=1,
        greater_is_better=True,  # so that the first evaluation stays the best
        load_best_model_at_end=True,
    )
    assert done.result.best_step == 1
    assert json.loads((done.folder / "adapter_config.json").read_text())["r"] == 2
    assert torch.equal(logits(done.folder, done.model), logits(done.folder / "checkpoint-best", done.model))


def test_going_back_after_an_overflow_goes_back_to_the_rank_of_then(fit):
    """The guard's states are those of their step: one of rank 2 is put back into a model of rank 4."""

    class Breaking(RecordingRun):
        """Spoils a weight once, right after the second rank has begun."""

    import llamafarm_tuners.pytorch._step as steps

    plain, done = steps.Stepper.gradient, []

    def spoiled(self, batches):
        found = plain(self, batches)
        rank = self.work.trained.model.peft_config["default"].r
        if rank == 4 and not done:
            done.append(rank)
            next(p for p in self.model.parameters() if p.grad is not None).grad.fill_(float("nan"))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps.Stepper, "gradient", spoiled)
        run = fit("lora", RANKS, max_steps=9, guard={"policy": "recover", "snapshot_steps": 2})
    (recovery,) = run.events("recovery")
    assert (recovery["step"], recovery["back_to"]) == (4, 2)
    assert json.loads((run.folder / "adapter_config.json").read_text())["r"] == 8


def test_several_processes_are_refused(fit, monkeypatch):
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(StrategyError, match="which 2 processes cannot follow") as caught:
        fit("lora", RANKS)
    assert caught.value.problems[0].id == "LF-TRAIN-076"
