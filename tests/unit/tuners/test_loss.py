from __future__ import annotations

import pytest
import torch
from torch import nn

from llamafarm.api import BaseModelConfig
from llamafarm.data.tokens import TokenizedRow
from llamafarm.models._load import load_model
from llamafarm.models.inner import can_select_logits
from llamafarm.testing._tiny import ARCHITECTURES
from llamafarm_tuners.pytorch._batches import padded
from llamafarm_tuners.pytorch._loss import token_losses
from llamafarm_tuners.pytorch.fast._head import exact_sum, head_loss

ROWS = [
    TokenizedRow([5, 9, 20, 31, 40, 7, 1], [-100, -100, 20, 31, 40, 7, 1]),
    TokenizedRow([5, 9, 20], [-100, -100, 20]),
    TokenizedRow([5, 9, 20, 60, 61], [-100, 9, -100, 60, 61]),
]


@pytest.fixture(params=ARCHITECTURES)
def model(request, tiny_model_dir):
    return load_model(BaseModelConfig(huggingface_id=str(tiny_model_dir(request.param))), dtype=torch.float32).eval()


def test_it_equals_the_models_own_loss_on_a_padded_batch(model):
    batch = padded(ROWS, pad_token_id=1)
    labels = torch.full((3, 7), -100)
    for index, row in enumerate(ROWS):
        labels[index, : len(row.labels)] = torch.tensor(row.labels)
    with torch.inference_mode():
        theirs = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels)
        for selective in (True, False):
            ours, right = token_losses(model, batch, selective=selective)
            assert ours.item() / batch.labels == pytest.approx(theirs.loss.item(), rel=1e-6)
            predicted = theirs.logits[:, :-1].argmax(-1)
            assert right.item() == int(((predicted == labels[:, 1:]) & (labels[:, 1:] != -100)).sum())


def test_rows_count_the_same_alone_and_padded(model):
    with torch.inference_mode():
        together, _ = token_losses(model, padded(ROWS, 1), selective=True)
        alone = sum(token_losses(model, padded([row], 1), selective=True)[0] for row in ROWS)
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)


def test_these_architectures_compute_logits_for_chosen_positions(model):
    assert can_select_logits(model)


def test_a_batch_with_nothing_to_learn_has_loss_0_and_gradients(model):
    batch = padded([TokenizedRow([5, 9], [-100, -100])], 1)
    loss, right = token_losses(model, batch, selective=True)
    assert (loss.item(), right.item()) == (0, 0)
    loss.backward()
    assert model.get_input_embeddings().weight.grad is not None


@pytest.mark.parametrize("chunked", [True, False])
def test_it_does_not_show_how_tokens_were_divided(chunked):
    """Sums in float32 would differ by 1e-7 of themselves, and each step's loss with them."""
    torch.manual_seed(0)
    hidden, head, targets = torch.randn(3000, 8), nn.Linear(8, 50), torch.randint(0, 50, (3000,))
    logits = head(hidden).detach()

    def loss(part: slice) -> float:
        if chunked:
            return head_loss(hidden[part], head, targets[part])[0].item()
        return exact_sum(logits[part], targets[part]).item()

    parts = [slice(start, start + 7) for start in range(0, 3000, 7)]
    # a product may round a row otherwise where it has other rows beside it, up or down: 6e-8 of it, less of the sum
    assert sum(map(loss, parts)) == pytest.approx(loss(slice(None)), rel=1e-9)


def test_half_precision_logits_are_summed_in_fp32(tiny_model_dir):
    config = BaseModelConfig(huggingface_id=str(tiny_model_dir("llama")))
    exact, rounded = (load_model(config, dtype=dtype).eval() for dtype in (torch.float32, torch.bfloat16))
    with torch.inference_mode():
        losses = [token_losses(model, padded(ROWS, 1), selective=True)[0] for model in (exact, rounded)]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-3)
