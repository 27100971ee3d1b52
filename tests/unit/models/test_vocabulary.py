"""Embeddings that grow for new tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llamafarm.api import BaseModelConfig
from llamafarm.errors import ModelError
from llamafarm.models._load import load_model, load_vocabulary
from llamafarm.models._vocabulary import fit_vocabulary, learn_every_token, rows_of
from llamafarm.models.vocabulary import VOCABULARY_FILE, additions_of, read_additions
from llamafarm.testing._tiny import ARCHITECTURES

IDS = torch.tensor([[0, 4, 30, 31, 1, 5, 60]])


def grown(folder: Path, multiple: int = 32):
    config = BaseModelConfig(huggingface_id=str(folder), add_chatml_tokens=True)
    vocabulary, model = load_vocabulary(config), load_model(config, dtype=torch.float32).eval()
    with torch.no_grad():
        before = model(IDS).logits
    return model, before, fit_vocabulary(model, vocabulary, multiple)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_old_tokens_keep_their_logits_and_new_ones_get_the_mean(tiny_model_dir, architecture: str):
    model, before, notices = grown(tiny_model_dir(architecture))
    assert notices == ("the embedding grows from 354 to 384 rows for 2 new tokens",)
    with torch.no_grad():
        after = model(IDS).logits
    assert after.shape[-1] == model.config.vocab_size == rows_of(model) == 384
    # a matrix product of another width may add up in another order: single precision, logits below 1
    torch.testing.assert_close(after[..., :354], before, atol=1e-6, rtol=0)
    expected = before.mean(dim=-1, keepdim=True).expand_as(after[..., 354:])
    torch.testing.assert_close(after[..., 354:], expected, atol=1e-6, rtol=0)
    embedding = model.get_input_embeddings().weight
    torch.testing.assert_close(embedding[354:], embedding[:354].mean(dim=0).expand(30, -1))
    tied = model.get_output_embeddings().weight is embedding
    assert tied == bool(model.config.tie_word_embeddings)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (354, 355)
    ends = model.generation_config.eos_token_id
    assert 355 in (ends if isinstance(ends, list) else [ends])


def test_growing_is_the_same_every_time_and_draws_nothing(tiny_model_dir):
    torch.manual_seed(1)
    drawn = torch.rand(1)
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(grown(tiny_model_dir("llama"))[0])
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)
    torch.manual_seed(1)
    grown(tiny_model_dir("llama"))
    assert torch.equal(torch.rand(1), drawn)


@pytest.mark.parametrize(("multiple", "rows"), [(1, 356), (8, 360), (64, 384)])
def test_the_multiple_is_the_users(tiny_model_dir, multiple: int, rows: int):
    assert rows_of(grown(tiny_model_dir("gemma"), multiple)[0]) == rows


def test_a_model_with_room_does_not_grow(tiny_model_dir, tmp_path: Path):
    model, _, _ = grown(tiny_model_dir("llama"))
    model.save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / file).write_bytes((tiny_model_dir("llama") / file).read_bytes())
    with torch.no_grad():  # spare rows of a foreign model hold anything
        model.get_input_embeddings().weight[354:] = 9.0
        model.save_pretrained(tmp_path)
    roomy, _, notices = grown(tmp_path)
    assert notices == ("the embedding keeps its 384 rows: there is room for 2 new tokens",)
    weight = roomy.get_input_embeddings().weight
    assert (weight[354:356] < 9).all()
    assert (weight[356:] == 9).all()


def test_nothing_new_changes_nothing(tiny_model_dir):
    config = BaseModelConfig(huggingface_id=str(tiny_model_dir("llama")))
    model = load_model(config, dtype=torch.float32)
    assert fit_vocabulary(model, load_vocabulary(config), 32) == ()
    assert (rows_of(model), additions_of(model)) == (354, None)


def test_the_end_token_learns_even_if_it_is_pad(tiny_model_dir):
    model = load_model(BaseModelConfig(huggingface_id=str(tiny_model_dir("llama"))), dtype=torch.float32)
    embedding = model.get_input_embeddings()
    embedding.padding_idx = 1  # as transformers sets it where the configuration names PAD

    def gradient() -> float:
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        return float(embedding.weight.grad[1].abs().sum())

    assert gradient() == 0.0
    learn_every_token(model)
    assert gradient() > 0.0


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"version": 2}', '{"version": 1, "rows": 3, "new": 4, "pad": null}', "no json"]
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: str):
    (tmp_path / VOCABULARY_FILE).write_text(content)
    with pytest.raises(ModelError, match="LF-MODEL-061"):
        read_additions(tmp_path)


def test_the_file_comes_back(tmp_path: Path):
    content = {"version": 1, "rows": 384, "new": {"<|im_start|>": 354, "<|pad|>": 355}, "pad": 355}
    (tmp_path / VOCABULARY_FILE).write_text(json.dumps(content))
    found = read_additions(tmp_path)
    assert found is not None
    assert (found.rows, found.learned) == (384, {"<|im_start|>": 354})
