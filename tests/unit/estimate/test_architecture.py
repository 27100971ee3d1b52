"""Counts against the models that transformers builds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from llamafarm.errors import ModelError
from llamafarm.estimate.architecture import read_architecture

SMALL = {
    "hidden_size": 96,
    "intermediate_size": 224,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 517,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Case:
    model_type: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.model_type} {self.options or ''}"


CASES = [
    Case("llama"),
    Case("llama", {"tie_word_embeddings": True}),
    Case("llama", {"attention_bias": True, "mlp_bias": True}),
    Case("mistral", {"head_dim": 32}),
    Case("qwen2"),
    Case("qwen3", {"head_dim": 32}),
    Case("gemma", {"head_dim": 32}),
    Case("gemma2", {"head_dim": 32}),
    Case("gemma3_text", {"head_dim": 32}),
    Case("phi3"),
    Case("phi"),
    Case("smollm3"),
    Case("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Case("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}),
    Case("gpt_neox"),
    Case("gpt2", {"n_embd": 96, "n_head": 6, "n_layer": 3, "n_positions": 128}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_parameter_is_counted(case):
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {} if case.model_type == "gpt2" else SMALL
    config = AutoConfig.for_model(case.model_type, **{**shape, "vocab_size": 517, **case.options})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    found = read_architecture(config.to_dict())
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)


def test_a_mixture_computes_with_few_of_its_parameters():
    config = {**SMALL, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    found = read_architecture(config)
    attention = 3 * (96 * 96 * 2 + 96 * 32 * 2)
    experts = 3 * 3 * 96 * 224
    assert found.active_parameters == attention + 2 * experts + 517 * 96


def test_a_configuration_within_a_larger_one_is_found():
    nested = {"model_type": "gemma3", "text_config": {**SMALL, "model_type": "gemma3_text", "head_dim": 32}}
    assert read_architecture(nested).layers == 3


def test_an_unknown_architecture_is_named():
    with pytest.raises(ModelError, match="architecture 'mamba'") as caught:
        read_architecture({"model_type": "mamba"})
    assert caught.value.problems[0].id == "LF-MODEL-160"


def test_missing_sizes_are_named():
    with pytest.raises(ModelError, match="'hidden_size'") as caught:
        read_architecture({"model_type": "llama"})
    assert caught.value.problems[0].id == "LF-MODEL-161"
