"""A pack computes what its documents compute alone: loss, gradients, logits; where it does not, it is refused."""

from __future__ import annotations

import re

import pytest
import torch

from llamafarm.api import BaseModelConfig, TrainingConfig
from llamafarm.data.packing import Pack, join, pack
from llamafarm.data.tokens import TokenizedRow
from llamafarm.errors import ModelError, Problem
from llamafarm.models._load import load_model
from llamafarm.testing._tiny import ARCHITECTURES
from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch._batches import collate, in_one_row, masked
from llamafarm_tuners.pytorch._isolation import one_row_only, require_isolation
from llamafarm_tuners.pytorch._loss import token_losses
from llamafarm_tuners.pytorch.checks import check
from llamafarm_tuners.pytorch.packs import packed_rows

CPU = torch.device("cpu")


def row(start: int, length: int, prompt: int) -> TokenizedRow:
    ids = [(start * 31 + at * 17) % 300 + 5 for at in range(length)]
    return TokenizedRow(ids, [-100] * prompt + ids[prompt:])


ROWS = [row(1, 14, 5), row(2, 9, 0), row(3, 22, 12), row(4, 3, 1), row(5, 11, 0), row(6, 17, 9)]


def load(folder, attention="sdpa"):
    config = BaseModelConfig(huggingface_id=str(folder))
    return load_model(config, dtype=torch.float32, attention=attention).eval()


@pytest.fixture(params=ARCHITECTURES)
def folder(request, tiny_model_dir):
    return tiny_model_dir(request.param)


@pytest.fixture(params=["sdpa", "eager"])
def model(request, folder):
    return load(folder, request.param)


def gradients(model, batches):
    model.zero_grad()
    losses = [token_losses(model, batch, selective=True) for batch in batches]
    total, right = sum(loss for loss, _ in losses), sum(int(right) for _, right in losses)
    labels = sum(batch.labels for batch in batches)
    (total / labels).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return total.item() / labels, labels, right, found


# fp32 sums in another order: losses of about 6 agree to some 1e-6, gradients to 1e-5 of their largest entry
def assert_same(one, other):
    assert one[1:3] == other[1:3]
    assert one[0] == pytest.approx(other[0], abs=1e-5)
    assert one[3].keys() == other[3].keys()
    for name, gradient in one[3].items():
        torch.testing.assert_close(gradient, other[3][name], rtol=1e-4, atol=1e-5, msg=name)


def test_packed_equals_unpacked_in_loss_and_gradients(model):
    packs = pack(ROWS, 40, 0)
    assert 1 < len(packs) < len(ROWS)
    alone = gradients(model, [collate([item], 1) for item in ROWS])
    assert_same(gradients(model, [collate([item], 1) for item in packs]), alone)
    assert_same(gradients(model, [collate(packs, 1)]), alone)
    assert_same(gradients(model, [collate(packs, 1, 8)]), alone)
    assert_same(gradients(model, [collate([in_one_row(packs)], 1)]), alone)


def test_no_document_predicts_the_first_token_of_the_next():
    batch = collate([join([row(1, 3, 0), row(2, 2, 0)])], 0)
    first, second = row(1, 3, 0), row(2, 2, 0)
    assert batch.targets.tolist() == [[*first.labels[1:], -100, second.labels[1]]]
    assert (batch.tokens, batch.labels) == (5, 3)


def test_padding_is_a_document_of_its_own_and_no_mask_is_given():
    batch = collate([join([row(1, 3, 0), row(2, 2, 0)]), join([row(3, 7, 0)])], 0)
    assert batch.attention_mask is None
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5, 6]]
    assert set(batch.inputs) == {"input_ids", "position_ids"}
    assert batch.to(CPU).positions is not None


def test_a_pack_with_nothing_to_learn_stays_a_pack():
    nothing = masked(join(ROWS[:2]))
    assert isinstance(nothing, Pack)
    assert collate([nothing], 0).labels == 0


def test_these_models_keep_documents_apart(model):
    require_isolation(model, pack(ROWS, 40, 0), CPU)
    assert not one_row_only(model)


def leaking(model):
    """The model as it is called when somebody passes a mask of ones: documents then see one another."""
    forward = model.forward

    def with_mask(input_ids, position_ids=None, **others):
        return forward(input_ids=input_ids, position_ids=position_ids, attention_mask=input_ids * 0 + 1, **others)

    model.forward = with_mask
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_documents_see_one_another_is_refused(folder, dtype):
    model = leaking(load(folder).to(dtype))
    model.train()
    with pytest.raises(ModelError, match=r"sdpa attention lets the documents .*packing: false.*LF-MODEL-041"):
        require_isolation(model, pack(ROWS, 40, 0), CPU)
    assert model.training


def test_half_precision_is_no_leak(folder):
    require_isolation(load(folder).to(torch.bfloat16), pack(ROWS, 40, 0), CPU)


def test_a_model_without_positions_is_refused():
    from transformers import BloomConfig, BloomForCausalLM

    bloom = BloomForCausalLM(BloomConfig(vocab_size=320, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(ModelError, match=r"bloom takes no positions.*LF-MODEL-040"):
        require_isolation(bloom, pack(ROWS, 40, 0), CPU)


def test_what_packing_makes_of_the_steps_is_said(tmp_path):
    run = RecordingRun(tmp_path)
    training = TrainingConfig(packing=True, packing_length=40, batch_size=1, gradient_accumulation_steps=2)
    packs = packed_rows(ROWS, training, run, 1)
    assert len(packs) == 2
    assert [event.fields["message"] for event in run.events] == [
        "packed 6 rows into 2 packs of at most 40 tokens (95% full); a step takes 2 packs, an epoch 1 steps"
    ]
    assert packed_rows(ROWS, TrainingConfig(), run, 1) is ROWS


def test_the_plan_says_what_a_step_takes(make):
    config, plan = make({"training": {"packing": True, "batch_size": 2, "max_seq_length": 512}})
    decision = next(item for item in check(config, plan) if item.subject == "packs per step and device")
    assert (decision.value, decision.reason) == ("2", "packing: batch_size counts packs of at most 512 tokens")


def test_a_pack_holds_the_longest_row(make):
    options = {"packing": True, "packing_length": 100, "max_seq_length": 512}
    config, plan = make({"training": options}, given=("training.packing_length",))
    problems = [item for item in check(config, plan) if isinstance(item, Problem)]
    assert [item.id for item in problems] == ["LF-TRAIN-016"]
    assert re.search("100 is below max_seq_length 512", problems[0].message)
