from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.api.config import ScratchConfig
from llamafarm.errors import ModelError
from llamafarm.models._scratch import new_model, train_tokenizer

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA = ScratchConfig(architecture={"model_type": "llama", **SIZES}, vocab_size=300, extra_tokens=("<|user|>",))
TOKENIZER = train_tokenizer(["the light in the kitchen", "the blinds in the hall"] * 3, LLAMA)


def test_the_tokenizer_learns_the_texts_and_knows_its_special_tokens():
    assert TOKENIZER.convert_tokens_to_ids(["<|bos|>", "<|eos|>", "<|pad|>", "<|user|>"]) == [0, 1, 2, 3]
    assert len(TOKENIZER("the light")["input_ids"]) < len("the light")
    assert TOKENIZER("<|user|>")["input_ids"] == [0, 3]


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_any_text_comes_back(text: str):
    if not any(token in text for token in TOKENIZER.all_special_tokens):
        ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
        assert TOKENIZER.decode(ids) == text


def test_a_model_has_the_tokenizers_vocabulary_and_torchs_seed():
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(new_model(LLAMA, TOKENIZER))
    weights = [model.get_input_embeddings().weight for model in models]
    assert weights[0].shape == (len(TOKENIZER), 32)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert models[0].config.eos_token_id == TOKENIZER.eos_token_id


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"model_type": "lama"}, "did you mean 'llama'"),
        ({}, "e.g. 'llama'"),
        ({"model_type": "llama", "hiden_size": 3}, "llama has no option 'hiden_size' .LF-MODEL-012"),
        ({"model_type": "llama", "num_attention_heads": 0}, "cannot build a llama model"),
    ],
)
def test_impossible_architectures_are_refused(architecture: dict[str, object], message: str):
    with pytest.raises(ModelError, match=message):
        new_model(ScratchConfig(architecture=architecture), TOKENIZER)
