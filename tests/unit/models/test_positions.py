"""Rows that are longer than what a model has positions for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamafarm.api.config import ScratchConfig
from llamafarm.data.fit import TokenizedRow
from llamafarm.errors import ModelError
from llamafarm.evaluation._likelihood import likelihoods
from llamafarm.models._generate import Sampling, generate
from llamafarm.models._scratch import new_model, train_tokenizer
from llamafarm.models.positions import Positions, positions_of
from llamafarm.testing._tiny import CHAT_TEMPLATE

_SPECIAL = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
_ARCHITECTURES = {
    "gpt2": {"n_positions": 40, "n_embd": 32, "n_layer": 1, "n_head": 2},
    "opt": {
        "max_position_embeddings": 40,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "gptj": {"n_positions": 40, "n_embd": 32, "n_layer": 1, "n_head": 2, "rotary_dim": 8},
    "llama": {
        "max_position_embeddings": 40,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
}


@pytest.fixture
def made(tmp_path: Path):
    """A folder with a model of an architecture that has 40 positions."""

    def make(architecture: str) -> Path:
        scratch = ScratchConfig(
            architecture={"model_type": architecture, **_ARCHITECTURES[architecture]},
            vocab_size=300,
            special_tokens=_SPECIAL,
            extra_tokens=("<|system|>", "<|user|>", "<|assistant|>"),
            chat_template=CHAT_TEMPLATE,
        )
        tokenizer = train_tokenizer(["a b c d e f"], scratch)
        folder = tmp_path / architecture
        new_model(scratch, tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize(("architecture", "table"), [("gpt2", True), ("opt", True), ("gptj", True), ("llama", False)])
def test_a_table_is_told_from_rotary_positions(made, architecture, table):
    model = AutoModelForCausalLM.from_pretrained(made(architecture))
    assert positions_of(model) == Positions(40, table)


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "gptj"])
def test_an_answer_ends_where_the_table_ends(made, architecture):
    folder = made(architecture)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    prompts = ["a", "a b c d e f"]
    answers = generate(model, tokenizer, prompts, Sampling(max_new_tokens=100), batch_size=1)
    assert len(answers) == 2
    with pytest.raises(ModelError, match="and the model 40 positions"):
        generate(model, tokenizer, [" a b c" * 40], Sampling(max_new_tokens=1))


def test_a_row_beyond_the_table_is_not_measured(made):
    model = AutoModelForCausalLM.from_pretrained(made("gpt2")).eval()
    fits, over = ([5] * count for count in (40, 41))
    assert likelihoods(model, [TokenizedRow(fits, fits, 0)], batch_size=1)[0].targets == 39
    with pytest.raises(ModelError) as caught:
        likelihoods(model, [TokenizedRow(over, over, 0)], batch_size=1)
    assert caught.value.problems[0].id == "LF-MODEL-222"


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_training_says_so_before_the_first_step(made, run_strategy, tmp_path, architecture):
    rows = [{"text": "a b c"}] * 7 + [{"text": "a b c " * 40}]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    sets = (f"base_model={made(architecture)}", f"dataset={data}", "training.max_steps=1", "training.batch_size=1")
    if architecture == "llama":
        ran = run_strategy("pytorch", *sets)
        assert any("40 positions" in str(event.fields) for event in ran.events if event.type == "warning")
        return
    with pytest.raises(ModelError, match=r"set training\.max_seq_length: 40"):
        run_strategy("pytorch", *sets)
    run_strategy("pytorch", *sets, "training.max_seq_length=40", "dataset.over_long=split")
