from __future__ import annotations

import pytest
from pydantic import ValidationError

from llamafarm_methods.config import LoraConfig, QloraConfig, QuantizationConfig
from llamafarm_methods.full import Full
from llamafarm_methods.lora import Lora
from llamafarm_methods.qlora import Qlora

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (list(SEVEN), SEVEN),
        ("q_proj,v_proj", ("q_proj", "v_proj")),
        (" q_proj, v_proj ", ("q_proj", "v_proj")),
        ("q_proj v_proj", ("q_proj", "v_proj")),
        ('["q_proj", "v_proj"]', ("q_proj", "v_proj")),
        ("q_proj", ("q_proj",)),
        ("all", "all"),
        ("auto", "auto"),
        ("all-linear", "all-linear"),
        (r".*\.(q|v)_proj", r".*\.(q|v)_proj"),
        (r".*layers\.[01]\..*_proj", r".*layers\.[01]\..*_proj"),
    ],
)
def test_targets_come_in_many_spellings(given, expected):
    assert LoraConfig(target_modules=given).target_modules == expected


@pytest.mark.parametrize(
    "given", ["", " , ", "(a+)+", "(unclosed", '["q_proj"', "x" * 300 + ".*", "(a|b)*", "a{3}*", 7]
)
def test_other_targets_are_refused(given):
    with pytest.raises(ValidationError):
        LoraConfig(target_modules=given)


def test_alpha_is_twice_the_rank_unless_given():
    assert Lora(LoraConfig(r=8)).adapter().options["alpha"] == 16
    assert Lora(LoraConfig(r=8, alpha=4)).adapter().options["alpha"] == 4


def test_a_layer_list_needs_layers_and_is_a_name():
    with pytest.raises(ValidationError, match="no effect without layers_to_transform"):
        LoraConfig(layers_pattern="layers")
    with pytest.raises(ValidationError, match="not a pattern"):
        LoraConfig(layers_to_transform=[0], layers_pattern=".*")
    assert LoraConfig(layers_to_transform=3, layers_pattern="h").layers_to_transform == (3,)


@pytest.mark.parametrize(
    "given", [{"r": 0}, {"alpha": 0}, {"dropout": 1}, {"bias": "some"}, {"init_lora_weights": "x"}]
)
def test_impossible_values_are_refused(given):
    with pytest.raises(ValidationError):
        LoraConfig(**given)


def test_every_alias_leads_to_a_field():
    assert set(LoraConfig.aliases.values()) <= set(LoraConfig.model_fields)
    assert {"lora_r", "lora_rank", "lora_alpha", "lora_dropout", "lora_target", "additional_target"} <= set(
        LoraConfig.aliases
    )


def test_qlora_stores_the_base_in_4_bits_unless_told_otherwise():
    spec = Qlora(QloraConfig()).adapter()
    assert spec.kind == "lora"
    assert spec.quantization == {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "auto",
    }
    eight = QloraConfig(quantization=QuantizationConfig(load_in_8bit=True))
    assert Qlora(eight).adapter().quantization == {"load_in_8bit": True}


@pytest.mark.parametrize("widths", [{"load_in_4bit": True, "load_in_8bit": True}, {"load_in_4bit": False}])
def test_the_base_has_exactly_one_width(widths):
    with pytest.raises(ValidationError):
        QuantizationConfig(**widths)


def test_full_changes_the_base():
    assert Full(Full.Config()).adapter().changes_base
