"""What bos-scaling is asked to do, and which token it takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from llamafarm.api import BaseModelConfig
from llamafarm.errors import ModelError, StrategyError
from llamafarm.models._load import load_model, load_tokenizer
from llamafarm.models.first_token import asked_first_token, begun, first_token, set_first_token
from llamafarm.testing.run_context import RecordingRun
from llamafarm_methods._bos import scaler_of
from llamafarm_methods.bos_scaling import BosScaling, BosScalingConfig, _first_of


def method(**options):
    return BosScaling(BosScalingConfig(**options))


@pytest.fixture
def tokenizer(tiny_model_dir):
    return load_tokenizer(BaseModelConfig(huggingface_id=str(tiny_model_dir("llama"))))


@pytest.fixture
def model(tiny_model_dir):
    return load_model(BaseModelConfig(huggingface_id=str(tiny_model_dir("llama"))), dtype="float32")


def test_the_factor_is_a_tenth_unless_given():
    assert BosScalingConfig().bos_scaling_factor == 0.1


@pytest.mark.parametrize("factor", [-0.1, 1.1, float("nan"), float("inf"), "much"])
def test_a_factor_is_a_share(factor):
    with pytest.raises(ValidationError):
        BosScalingConfig(bos_scaling_factor=factor)


def test_a_token_is_named_once():
    with pytest.raises(ValidationError, match="keep one"):
        BosScalingConfig(bos_token="<s>", bos_token_id=1)


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({"bos_token_id": 5, "eos_token_id": 6, "pad_token_id": 7}, 5),
        ({"bos_token_id": 0, "eos_token_id": 6}, 0),
        ({"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 7}, 0),
        ({"bos_token_id": None, "eos_token_id": None, "pad_token_id": 7}, 7),
        ({"eos_token_id": [8, 9]}, 8),
    ],
)
def test_bos_then_eos_then_pad_and_zero_is_an_id(has, expected):
    assert _first_of(SimpleNamespace(**has)) == expected


def test_a_tokenizer_without_any_is_refused():
    with pytest.raises(ModelError, match="neither BOS nor EOS nor PAD") as caught:
        _first_of(SimpleNamespace(bos_token_id=None))
    assert caught.value.problems[0].id == "LF-MODEL-091"


def test_the_configured_token_is_taken(tokenizer):
    assert method().first_token(tokenizer) == tokenizer.bos_token_id
    assert method(bos_token="<|user|>").first_token(tokenizer) == tokenizer.convert_tokens_to_ids("<|user|>")
    assert method(bos_token_id=9).first_token(tokenizer) == 9
    assert method(use_bos_zero_training=False).first_token(tokenizer) is None


@pytest.mark.parametrize(("has", "said"), [(None, "has no BOS;"), ("<|end|>", "has no BOS of its own")])
def test_a_tokenizer_without_a_bos_of_its_own_is_refused_unless_the_token_is_named(tokenizer, has, said):
    """As that of Qwen2, which has none, and that of GPT-NeoX, whose BOS is its EOS."""
    end = tokenizer.eos_token
    tokenizer.bos_token = end if has else None
    with pytest.raises(ModelError, match=said) as caught:
        method().first_token(tokenizer)
    assert caught.value.problems[0].id == "LF-MODEL-221"
    assert f"bos_token: {end!r} goes on with that one" in str(caught.value)
    assert method(bos_token=end).first_token(tokenizer) == tokenizer.eos_token_id
    assert method(bos_token="<|user|>").first_token(tokenizer) == tokenizer.convert_tokens_to_ids("<|user|>")
    assert method(use_bos_zero_training=False).first_token(tokenizer) is None


def test_an_unknown_token_is_refused(tokenizer):
    with pytest.raises(ModelError, match="does not have it") as caught:
        method(bos_token="<|usr|>").first_token(tokenizer)
    assert caught.value.problems[0].id == "LF-MODEL-090"
    assert "<|user|>" in str(caught.value)
    with pytest.raises(ModelError, match="the tokenizer has"):
        method(bos_token_id=99999).first_token(tokenizer)


def test_methods_agree_on_the_token(tokenizer):
    assert asked_first_token([method(), method()], tokenizer) == tokenizer.bos_token_id
    assert asked_first_token([], tokenizer) is None
    with pytest.raises(StrategyError, match="different tokens") as caught:
        asked_first_token([method(), method(bos_token_id=9)], tokenizer)
    assert caught.value.problems[0].id == "LF-STRATEGY-060"


def test_the_model_keeps_what_its_rows_begin_with(model):
    assert first_token(model) is None
    set_first_token(model, 0)
    assert first_token(model) == 0
    set_first_token(model, None)
    assert first_token(model) is None
    assert begun([5], 0) == [0, 5]
    assert begun([0, 5], 0) == [0, 5]
    assert begun([], 0) == [0]
    assert begun([5], None) == [5]


@pytest.mark.parametrize(("factor", "words"), [(0.0, "FACTOR 0"), (0.005, "below 0.01"), (0.01, None), (1.0, None)])
def test_small_factors_are_warned_of(model, tmp_path, factor, words):
    run = RecordingRun(tmp_path)
    method(bos_scaling_factor=factor).apply(model, run)
    warnings = [event.fields["message"] for event in run.events if event.type == "warning"]
    assert len(warnings) == (words is not None)
    assert words is None or words in warnings[0]


def test_switched_off_it_does_nothing(model, tmp_path):
    run = RecordingRun(tmp_path)
    off = method(use_bos_zero_training=False)
    assert off.apply(model, run) is model
    assert scaler_of(model) is None
    assert "switched off" in run.events[0].fields["message"]
    assert off.files(model) == {}
    assert off.restore(model, tmp_path) is model
    assert off.bake(model) is model
