"""A machine without memory is no template that refuses."""

from __future__ import annotations

import pytest

from llamafarm.api import BaseModelConfig
from llamafarm.export import _gguf_vocabulary, beginning, modelfile
from llamafarm.export.conversations import Conversation
from llamafarm.models._load import load_tokenizer
from llamafarm.models._turns import end_of_turn


@pytest.fixture
def tokenizer(tiny_model_dir, monkeypatch):
    """A tokenizer for whose template the memory does not suffice."""
    found = load_tokenizer(BaseModelConfig(huggingface_id=str(tiny_model_dir("llama"))))

    def nothing_left(*_, **__):
        raise MemoryError

    monkeypatch.setattr(found, "apply_chat_template", nothing_left)
    return found


@pytest.mark.parametrize(
    "ask",
    [
        end_of_turn,
        _gguf_vocabulary.begins_with_bos,
        lambda tokenizer: modelfile.applied(tokenizer, Conversation("single", ({"role": "user", "content": "a"},))),
        lambda tokenizer: beginning.require_nowhere_else(tokenizer, 1),
    ],
)
def test_it_is_said_and_not_taken_for_an_answer(tokenizer, ask):
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.eos_token
    with pytest.raises(MemoryError):
        ask(tokenizer)
