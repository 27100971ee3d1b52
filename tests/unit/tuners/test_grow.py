"""The rank grows: nothing that the model says changes, and nothing that the optimizer knows is lost."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from llamafarm.api import BaseModelConfig
from llamafarm.errors import ModelError
from llamafarm.models._load import load_model
from llamafarm.testing.run_context import RecordingRun
from llamafarm_methods.config import LoraConfig
from llamafarm_methods.full import Full
from llamafarm_methods.lora import Lora
from llamafarm_tuners.pytorch._grow import grow, stages

ROWS = torch.tensor([[1, 20, 30, 40, 50, 60]])


def load(folder):
    return load_model(BaseModelConfig(huggingface_id=str(folder)), dtype=torch.float32)


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(ROWS).logits


def train(model, optimizer, steps=3):
    model.train()
    for _ in range(steps):
        loss = model(input_ids=ROWS, labels=ROWS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


@pytest.fixture(params=[{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def options(request):
    return request.param


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gpt_neox"])
def test_the_function_stays_and_the_optimizer_remembers(options, architecture, tiny_model_dir, tmp_path):
    torch.manual_seed(0)
    base = tiny_model_dir(architecture)
    config = LoraConfig(r=4, alpha=8, dropout=0, **options)
    model = Lora(config).apply(load(base), RecordingRun(tmp_path))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses = [train(model, optimizer)]
    for old, rank in ((4, 8), (8, 16)):
        before = logits(model)
        layer = next(module for module in model.modules() if hasattr(module, "lora_A") and "default" in module.lora_A)
        scale = layer.scaling["default"]
        a, b = (optimizer.state[matrix["default"].weight] for matrix in (layer.lora_A, layer.lora_B))
        remembered = [{name: value.clone() for name, value in state.items()} for state in (a, b)]
        count = len(optimizer.state)
        grow(model, optimizer, rank)
        assert torch.equal(logits(model), before) or torch.allclose(logits(model), before, atol=1e-6)
        assert layer.lora_A["default"].weight.shape[0] == layer.lora_B["default"].weight.shape[1] == rank
        assert layer.lora_A["default"].weight[old:].abs().min(dim=1).values.gt(0).any()
        assert not layer.lora_B["default"].weight[:, old:].any()
        assert layer.scaling["default"] == scale
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        assert len(optimizer.state) == count
        a, b = (optimizer.state[matrix["default"].weight] for matrix in (layer.lora_A, layer.lora_B))
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(a[name][:old], remembered[0][name])
            assert torch.equal(b[name][:, :old], remembered[1][name])
            assert not a[name][old:].any()
            assert not b[name][:, old:].any()
        assert a["step"] == remembered[0]["step"]
        losses.append(train(model, optimizer))
        assert layer.lora_B["default"].weight[:, old:].any(), "the new columns learn"
    assert losses == sorted(losses, reverse=True)
    after = logits(model)
    model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(load(base), tmp_path / "saved")
    assert loaded.peft_config["default"].r == 16
    assert torch.allclose(logits(loaded), after, atol=1e-6)


def test_what_cannot_grow_is_refused(tiny_model_dir, tmp_path):
    run = RecordingRun(tmp_path)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    model = Lora(LoraConfig(r=8, rank_pattern={"q_proj": 4})).apply(load(tiny_model_dir("llama")), run)
    with pytest.raises(ModelError, match=r"ranks \[4, 8\].*LF-MODEL-080"):
        grow(model, optimizer, 16)
    model = Lora(LoraConfig(r=8)).apply(load(tiny_model_dir("llama")), run)
    with pytest.raises(ModelError, match="they cannot grow to 8"):
        grow(model, optimizer, 8)
    with pytest.raises(ModelError, match="no LoRA adapters"):
        grow(Full(Full.Config()).apply(load(tiny_model_dir("llama")), run), optimizer, 8)


def test_the_last_rank_takes_the_remainder():
    assert stages((4, 8, 16), 500) == (166, 166, 168)
    assert stages((4,), 3) == (3,)
    with pytest.raises(ValueError, match="too few"):
        stages((4, 8), 1)
