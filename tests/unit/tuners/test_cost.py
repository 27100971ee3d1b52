"""What a step costs: operations counted, not timed, and the largest tensors that it makes."""

from __future__ import annotations

from dataclasses import replace

import peft
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from llamafarm.api import BaseModelConfig
from llamafarm.data.tokens import TokenizedRow
from llamafarm.models._load import load_model
from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch._loss import token_losses
from llamafarm_tuners.pytorch.fast._head import head_loss
from llamafarm_tuners.pytorch.fast._install import fast_paths

CPU = torch.device("cpu")


def rows(count, length=24, prompt=8):
    ids = [[(at * 17 + number * 31) % 300 + 5 for at in range(length)] for number in range(count)]
    return [TokenizedRow(one, [-100] * prompt + one[prompt:]) for one in ids]


def of_onednn(x_shape, weight_shape, *_, out_shape=None, **__):
    return 2 * x_shape[0] * x_shape[1] * weight_shape[0]


COUNTED = {torch.ops.mkldnn._linear_pointwise: of_onednn} if hasattr(torch.ops.mkldnn, "_linear_pointwise") else {}


def operations(model, batch_of, *, ends=True):
    """Of loss and gradients."""
    everything = rows(32)
    run = RecordingRun(None)
    with fast_paths(model, everything, CPU, run) as paths:
        assert paths.documents, run.events
        batch = paths.batch(batch_of, 0)
        batch = batch if ends else replace(batch, ends=False)
        with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
            loss, _ = token_losses(model, batch, selective=paths.selective, head=paths.head)
            loss.backward()
    model.zero_grad()
    return counter.get_total_flops()


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_operations_grow_linearly_with_tokens_however_long_the_others_are(tiny_model_dir, architecture):
    model = load_model(BaseModelConfig(huggingface_id=str(tiny_model_dir(architecture))), dtype=torch.float32).train()
    few, many = operations(model, rows(4)), operations(model, rows(32))
    assert few > 0
    assert many == 8 * few
    # one long document besides: what it costs is its own
    (long,) = rows(1, length=60, prompt=20)
    assert operations(model, [*rows(4), long]) == few + operations(model, [long])


def test_what_is_not_learned_costs_no_head(tiny_model_dir):
    model = load_model(BaseModelConfig(huggingface_id=str(tiny_model_dir("llama"))), dtype=torch.float32).train()
    width, vocabulary = model.config.hidden_size, model.config.vocab_size
    all_but_four, one = operations(model, rows(1, prompt=4)), operations(model, rows(1, prompt=23))
    # for each learned token: the logits, the gradient of its state, and that of the head
    assert all_but_four - one == 19 * 3 * 2 * width * vocabulary


def with_lora(model, **options):
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    return peft.get_peft_model(model, config).train()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_last_fused_layer_finishes_learned_tokens_alone(tiny_model_dir, dropout):
    model = load_model(BaseModelConfig(huggingface_id=str(tiny_model_dir("llama"))), dtype=torch.float32)
    model = with_lora(model, lora_dropout=dropout)
    config = model.config
    counted = [operations(model, rows(4, prompt=16), ends=ends) for ends in (True, False)]
    weights = config.hidden_size * (config.hidden_size + 3 * config.intermediate_size)
    # output, gate, up and down, forward and back, for the 16 of 24 that are not learned
    assert counted[1] - counted[0] >= 4 * 16 * 2 * 2 * weights


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that was made."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.bytes = max([self.bytes, *sizes])
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_of_the_loss_grows_with_tokens_times_vocabulary(dtype):
    head = nn.Linear(4, 32_000, bias=False, dtype=dtype).requires_grad_(False)
    sizes = []
    for tokens in (512, 2048):
        hidden, targets = torch.randn(tokens, 4, dtype=dtype, requires_grad=True), torch.zeros(tokens, dtype=torch.long)
        with Largest() as largest:
            head_loss(hidden, head, targets)[0].backward()
        sizes.append(largest.bytes)
    assert sizes[0] == sizes[1] <= 32 * 2**20
