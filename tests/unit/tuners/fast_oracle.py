"""Plain training of packed and padded rows, written out with transformers and torch, and what it is compared with."""

from __future__ import annotations

import peft
import pytest
import torch
from torch.nn import functional

from llamafarm.api import BaseModelConfig
from llamafarm.data.tokens import TokenizedRow
from llamafarm.models._load import load_model
from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch._loss import token_losses
from llamafarm_tuners.pytorch.fast._install import Wanted, fast_paths

CPU = torch.device("cpu")


def row(start: int, length: int, prompt: int) -> TokenizedRow:
    ids = [(start * 31 + at * 17) % 300 + 5 for at in range(length)]
    return TokenizedRow(ids, [-100] * prompt + ids[prompt:])


ROWS = [row(1, 14, 5), row(2, 9, 0), row(3, 62, 12), row(4, 3, 1), row(5, 11, 0), row(6, 17, 9), row(7, 1, 0)]


def load(folder, attention="sdpa", dtype=torch.float32):
    model = load_model(BaseModelConfig(huggingface_id=str(folder)), dtype=dtype, attention=attention)
    with torch.random.fork_rng():  # biases are born as zeros, and would hide that one is forgotten
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def with_lora(model, **options):
    torch.manual_seed(2)
    options = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    config = peft.LoraConfig(r=4, lora_alpha=8, **options)
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # born as zeros, they would hide the gradients of lora_A
            parameter.data += 0.1 * torch.randn_like(parameter)
    return adapted


def oracle(model, rows):
    """Sum of losses as everybody computes it: padded, all logits, torch's cross entropy. Its gradients stay behind."""
    width = max(len(item.input_ids) for item in rows)
    ids = torch.tensor([item.input_ids + [0] * (width - len(item.input_ids)) for item in rows])
    mask = torch.tensor([[1] * len(item.input_ids) + [0] * (width - len(item.input_ids)) for item in rows])
    labels = torch.tensor([item.labels + [-100] * (width - len(item.labels)) for item in rows])
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
    loss.backward()
    return loss.item()


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def ours(model, batches, wanted=None, run=None):
    """Sum of losses of lists of rows, in the ways that are wanted; gradients stay behind."""
    everything = [item for rows in batches for item in rows]
    total = 0.0
    with fast_paths(model, everything, CPU, run or RecordingRun(None), wanted) as paths:
        for rows in batches:
            loss, _ = token_losses(model, paths.batch(rows, 0), selective=paths.selective, head=paths.head)
            loss.backward()
            total += loss.item()
    return total


def assert_same(one, other, relative=1e-5):
    """Losses, and gradients as a whole: float32 sums in another order differ in the last of seven digits."""
    assert one[0] == pytest.approx(other[0], rel=relative)
    assert one[1].keys() == other[1].keys()
    size = torch.cat([gradient.flatten() for gradient in other[1].values()]).norm()
    for name, gradient in one[1].items():
        theirs = other[1][name]
        assert (gradient - theirs).norm() <= relative * max(theirs.norm(), 1e-2 * size), name


def both(model, batches=(ROWS,), wanted=None, relative=1e-5, run=None):
    expected = oracle(model, [item for rows in batches for item in rows]), gradients(model)
    assert_same((ours(model, batches, wanted, run), gradients(model)), expected, relative)


def paths_of(run):
    return next(event.fields for event in run.events if event.type == "paths")


def tiny(config_class, model_class, **options):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(3)
    return model_class(config_class(**{**sizes, "vocab_size": 320, "pad_token_id": 0, **options})).eval()


def same_with_dropout(model, relative=1e-5):
    """One row without padding draws the same masks in both."""
    found = []
    for wanted in (Wanted(layers=False, adapters=False), Wanted()):
        torch.manual_seed(5)
        run = RecordingRun(None)
        found.append((ours(model, [ROWS], wanted, run), gradients(model)))
        assert bool(paths_of(run)["fused_layers"]) == wanted.layers
    assert_same(*found, relative)
