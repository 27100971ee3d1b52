"""A base that was loaded in fp32 and rounded is the one that is loaded in bf16."""

from __future__ import annotations

import pytest
import torch

from llamafarm.api import BaseModelConfig
from llamafarm.models._load import load_model
from llamafarm.models.vocabulary import Additions, remember_additions
from llamafarm_tuners.pytorch._frozen import rounded


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3", "mistral", "gpt_neox"])
def test_a_rounded_model_is_the_one_loaded_in_bf16(tiny_model_dir, architecture):
    base = BaseModelConfig(huggingface_id=str(tiny_model_dir(architecture)))
    wide, narrow = (load_model(base, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert rounded(wide)
    mine, theirs = (dict([*model.named_parameters(), *model.named_buffers()]) for model in (wide, narrow))
    assert {name: value.dtype for name, value in mine.items()} == {name: value.dtype for name, value in theirs.items()}
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert wide.config.to_dict() == narrow.config.to_dict()
    assert wide.dtype == torch.bfloat16
    tied = [model.get_input_embeddings().weight is model.get_output_embeddings().weight for model in (wide, narrow)]
    assert tied[0] == tied[1]


@pytest.fixture
def wide(tiny_model_dir):
    return load_model(BaseModelConfig(huggingface_id=str(tiny_model_dir("llama"))), dtype=torch.float32)


def new_tokens(model):
    remember_additions(model, Additions(300, {"<new>": 299}))


def a_layer_that_stays(model):
    model._keep_in_fp32_modules_strict = {"lm_head"}


def a_buffer_that_is_saved(model):
    model.register_buffer("scale", torch.ones(1))


def a_weight_in_another_format(model):
    model.lm_head.weight.data = model.lm_head.weight.data.half()


def test_a_scale_that_is_made_in_the_format_of_the_model_is_loaded(tiny_model_dir):
    base = BaseModelConfig(huggingface_id=str(tiny_model_dir("gemma")))
    assert not rounded(load_model(base, dtype=torch.float32))  # its embeddings are scaled by a buffer


@pytest.mark.parametrize("more", [new_tokens, a_layer_that_stays, a_buffer_that_is_saved, a_weight_in_another_format])
def test_where_it_may_be_more_than_to_round_nothing_is_done(wide, more):
    more(wide)
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    assert not rounded(wide)
    after = wide.state_dict()
    assert all(value.dtype == before[name].dtype and torch.equal(value, before[name]) for name, value in after.items())
    assert wide.config.dtype == torch.float32
