"""What can only be seen with a model or its tokenizer at hand."""

from __future__ import annotations

import pytest
from tokenizers.normalizers import Lowercase

from llamafarm.api import BaseModelConfig, Example, Message, RowRef
from llamafarm.errors import LlamaFarmError

CHAT = (Message("user", "Open THE door"), Message("assistant", "The Door is OPEN"))


@pytest.fixture
def tokenizer(tiny_model_dir):
    from llamafarm.models._load import load_tokenizer

    return load_tokenizer(BaseModelConfig(huggingface_id=str(tiny_model_dir("llama"))))


def tokenized(tokenizer, max_seq_length=256):
    from llamafarm.data.tokens import tokenize

    examples = [Example(RowRef("rows.jsonl", 1), CHAT)]
    return tokenize(examples, tokenizer, stage="sft", max_seq_length=max_seq_length, train_on_inputs=False)


def test_answers_that_do_not_fit(tokenizer):
    with pytest.raises(LlamaFarmError, match=r"raise training\.max_seq_length.*LF-DATA-023"):
        tokenized(tokenizer, max_seq_length=1)


def test_a_tokenizer_that_changes_the_text(tokenizer):
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    with pytest.raises(LlamaFarmError, match=r"rows\.jsonl:1.*LF-TEMPLATE-005"):
        tokenized(tokenizer)


@pytest.mark.e2e
def test_an_architecture_without_gradient_checkpointing(run_strategy, tiny_dataset):
    small = {"model_type": "openai-gpt", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    tuner = {
        "type": "pytorch",
        "config": {
            "base_model": {"from_scratch": {"architecture": small, "vocab_size": 300}},
            "dataset": str(tiny_dataset),
            "method": "full",
            "training": {"stage": "pt", "max_steps": 1, "max_seq_length": 64, "gradient_checkpointing": True},
        },
    }
    with pytest.raises(LlamaFarmError, match=r"gradient_checkpointing: false.*LF-MODEL-024"):
        run_strategy(tuner)
    run_strategy(tuner, "training.gradient_checkpointing=false")
