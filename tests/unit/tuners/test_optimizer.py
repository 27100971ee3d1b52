from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.optimization import get_scheduler

from llamafarm.api import BaseModelConfig, TrainingConfig
from llamafarm.models._load import load_model
from llamafarm.testing.run_context import RecordingRun
from llamafarm_methods.config import DoraConfig
from llamafarm_methods.dora import Dora
from llamafarm_tuners.pytorch._optimizer import build_optimizer, learning_rate_factors, parameter_groups


def small() -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 2))
    model[2].requires_grad_(False)
    return model


def test_biases_and_norms_are_not_decayed_and_frozen_weights_not_held():
    model = small()
    decayed, rest = parameter_groups(model, TrainingConfig(weight_decay=0.1))
    assert [group["weight_decay"] for group in (decayed, rest)] == [0.1, 0.0]
    assert decayed["params"] == [model[0].weight]
    assert {id(parameter) for parameter in rest["params"]} == {id(p) for p in (model[0].bias, *model[1].parameters())}


@pytest.mark.parametrize(
    ("optim", "name"),
    [
        ("adamw_torch", "AdamW"),
        ("adamw_torch_fused", "AdamW"),
        ("sgd", "SGD"),
        ("adamw_8bit", "AdamW8bit"),
        ("adamw_bnb_8bit", "AdamW8bit"),
        ("paged_adamw_8bit", "AdamW8bit"),
        ("paged_adamw_32bit", "AdamW"),
    ],
)
def test_each_optimizer_takes_a_step(optim, name):
    if "8bit" in optim or "paged" in optim:
        pytest.importorskip("bitsandbytes")
    model = small()
    training = TrainingConfig(optim=optim, learning_rate=0.1, adam_beta1=0.8, adam_epsilon=1e-6)
    optimizer = build_optimizer(model, training, "cpu")
    assert type(optimizer).__name__ == name
    before = model[0].weight.detach().clone()
    model(torch.ones(3, 64)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, model[0].weight)
    if optim != "sgd":
        assert optimizer.param_groups[0]["betas"] == (0.8, 0.999)
        assert optimizer.param_groups[0]["eps"] == 1e-6
    if optim == "adamw_8bit":
        assert optimizer.state[model[0].weight]["state1"].dtype == torch.uint8


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_moments_of_an_embedding_stay_in_32_bits(optim):
    pytest.importorskip("bitsandbytes")
    model = nn.Sequential(nn.Embedding(200, 64), nn.Linear(64, 200))
    optimizer = build_optimizer(model, TrainingConfig(optim=optim), "cpu")
    model(torch.arange(8)).sum().backward()
    optimizer.step()
    found = [optimizer.state[part.weight]["state1"].dtype for part in model]
    assert found == [torch.float32, torch.uint8]


def test_groups_go_by_learning_rate_and_decay_the_plain_rate_first():
    model = small()
    training = TrainingConfig(learning_rate=0.5, weight_decay=0.1)
    groups = parameter_groups(model, training, {"0.weight": 16.0, "1.bias": 16.0, "2.weight": 3.0})
    found = [(group["lr"], group["weight_decay"], len(group["params"])) for group in groups]
    assert found == [(0.5, 0.0, 2), (8.0, 0.1, 1), (8.0, 0.0, 1)]


def test_lora_plus_teaches_b_faster_through_the_whole_schedule(tiny_model_dir, tmp_path):
    base = load_model(BaseModelConfig(huggingface_id=str(tiny_model_dir("llama"))), dtype=torch.float32)
    method = Dora(DoraConfig(loraplus_lr_ratio=16, target_modules="q_proj", r=2))
    model = method.apply(base, RecordingRun(tmp_path))
    training = TrainingConfig(learning_rate=1e-3, weight_decay=0.1)
    optimizer = build_optimizer(model, training, "cpu", [method])
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr()[0] == pytest.approx(5e-4), "the first group's rate is the one that is logged"
    seen = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            part = next(part for part in ("lora_A", "lora_B", "lora_magnitude") if part in name)
            seen.add(part)
            assert group["lr"] == pytest.approx(5e-4 * (16 if part == "lora_B" else 1))
            assert group["weight_decay"] == (0 if part == "lora_magnitude" else 0.1)
    assert seen == {"lora_A", "lora_B", "lora_magnitude"}


def test_factors_of_stacked_methods_multiply():
    class Twice:
        def learning_rates(self, model):
            return {"0.weight": 2.0}

    assert learning_rate_factors(small(), [Twice(), Twice()]) == {"0.weight": 4.0}
