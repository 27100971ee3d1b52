from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamafarm.models._load import load_for_generation

IDS = torch.tensor([[0, 4, 30, 31, 1, 5, 60]])


@pytest.mark.e2e
@pytest.mark.parametrize("architecture", ["llama", "gemma", "phi3"])
def test_all_weights_are_trained_and_the_model_reloads(fit, architecture, monkeypatch):
    from llamafarm_tuners.pytorch import _fit

    seen = {}

    def train(work, run, continuation, original=_fit.train):
        course = original(work, run, continuation)
        seen["model"] = work.trained.model.eval()
        return course

    monkeypatch.setattr(_fit, "train", train)
    done = fit("full", architecture=architecture, learning_rate=2e-3)
    assert done.losses[-1] < done.losses[0] - 0.5
    assert done.result.trainable_parameters == done.result.total_parameters
    before = AutoModelForCausalLM.from_pretrained(done.model).state_dict()
    after = AutoModelForCausalLM.from_pretrained(done.folder)
    same = [name for name, tensor in after.state_dict().items() if torch.equal(tensor, before[name])]
    assert same == []
    assert torch.equal(after(IDS).logits, seen["model"](IDS).logits)
    assert AutoTokenizer.from_pretrained(done.folder).chat_template
    assert not (done.folder / "adapter_config.json").exists()
    load_for_generation(str(done.folder / "checkpoint-best"))


@pytest.mark.e2e
def test_a_half_precision_base_is_trained_in_fp32(fit, tiny_model_dir, tmp_path):
    half = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama"), dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(tiny_model_dir("llama")).save_pretrained(tmp_path / "half")
    done = fit("full", base={"huggingface_id": str(tmp_path / "half")}, max_steps=2)
    assert json.loads((done.folder / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.e2e
def test_the_best_model_can_be_the_result(fit):
    # the loss falls all the time: turned round, the first evaluation is the best
    done = fit(
        "full",
        held_out=6,
        max_steps=6,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        greater_is_better=True,
    )
    losses = {event["step"]: event["eval_loss"] for event in done.events("eval")}
    assert losses[2] > losses[4] > losses[6]
    assert done.result.best_step == 2
    assert done.result.metrics["eval_loss"] == losses[2]
    final = (done.folder / "model.safetensors").read_bytes()
    assert final == (done.folder / "checkpoint-best" / "model.safetensors").read_bytes()
    assert json.loads((done.folder / "eval_results.json").read_text())["eval_loss"] == losses[2]


@pytest.mark.e2e
def test_a_model_from_scratch_is_trained_with_its_tokenizer(fit, scratch):
    base = scratch()
    done = fit("full", base=base, learning_rate=1e-2, max_steps=30)
    assert done.losses[-1] < done.losses[0] - 1
    model, tokenizer = load_for_generation(str(done.folder))
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    assert tokenizer.convert_tokens_to_ids("<|assistant|>") == 4
    assert "from random weights" in (done.folder / "README.md").read_text()
    assert fit("full", base=base, learning_rate=1e-2, max_steps=30).losses == done.losses
