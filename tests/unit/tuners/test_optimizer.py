from __future__ import annotations

import pytest
import torch
from torch import nn

from llamafarm.api import TrainingConfig
from llamafarm_tuners.pytorch._optimizer import build_optimizer, parameter_groups


def small() -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 2))
    model[2].requires_grad_(False)
    return model


def test_biases_and_norms_are_not_decayed_and_frozen_weights_not_held():
    model = small()
    decayed, rest = parameter_groups(model, 0.1)
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
