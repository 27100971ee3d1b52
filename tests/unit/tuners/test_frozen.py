"""The rule for the format of a frozen base on a processor."""

from __future__ import annotations

import json

import pytest

from llamafarm.api import DeviceSpec
from llamafarm.testing.fresh import heavy_after
from llamafarm_methods.dora import Dora
from llamafarm_methods.full import Full
from llamafarm_methods.lora import Lora
from llamafarm_methods.qlora import Qlora
from llamafarm_tuners.pytorch import frozen
from llamafarm_tuners.pytorch.checks import check
from llamafarm_tuners.pytorch.precision import base_format

WITH = DeviceSpec("cpu", "a processor", details={"bf16": True, "bf16_instructions": True})
WITHOUT = DeviceSpec("cpu", "a processor", details={"bf16": True, "bf16_instructions": False})


@pytest.fixture
def model(tmp_path):
    """A function: what its config.json says → a model's folder."""

    def write(**sizes):
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 256} | sizes))
        return {"huggingface_id": str(folder)}

    return write


def lora(**options):
    return Lora(Lora.Config(**options))


def test_a_wide_frozen_base_is_in_bf16(make, model):
    config, plan = make({"base_model": model()}, device=WITH)
    found = frozen.choice(config, plan)
    assert found is not None
    assert found.dtype == "bfloat16"
    assert "a processor has instructions for it" in found.reason
    assert base_format(frozen.settled(config, plan), plan) == "bfloat16"
    decisions = {item.subject: item for item in check(config, plan)}
    assert decisions["base_model.torch_dtype"].value == "bfloat16"


ELSEWHERE = {
    "another device": ({}, {}, {"device": DeviceSpec("cuda", "a GPU", details=WITH.details)}),
    "no instructions": ({}, {}, {"device": WITHOUT}),
    "fp32 was written": ({"torch_dtype": "float32"}, {}, {}),
    "bf16 was written": ({"torch_dtype": "bfloat16"}, {}, {}),
    "autocast": ({}, {"bf16": True}, {}),
    "everything in bf16": ({}, {"pure_bf16": True}, {}),
    "4 bits": ({"load_in_4bit": True}, {}, {}),
    "8 bits": ({"load_in_8bit": True}, {}, {}),
    "4 bits by the method": ({}, {}, {"method": Qlora(Qlora.Config())}),
    "the base is trained": ({}, {}, {"method": Full(Full.Config())}),
    "another method": ({}, {}, {"method": Dora(Dora.Config())}),
    "parts trained whole": ({}, {}, {"method": lora(modules_to_save=["lm_head"])}),
    "an adapter that takes the base apart": ({}, {}, {"method": lora(init_lora_weights="pissa")}),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_elsewhere_there_is_nothing_to_choose(make, model, case):
    base, training, rest = ELSEWHERE[case]
    config, plan = make({"base_model": model() | base, "training": training}, **({"device": WITH} | rest))
    assert frozen.choice(config, plan) is None
    assert frozen.settled(config, plan) is config


@pytest.mark.parametrize("start", [True, False, "gaussian"])
def test_plain_starts_leave_it_open(make, model, start):
    config, plan = make({"base_model": model()}, device=WITH, method=lora(init_lora_weights=start))
    found = frozen.choice(config, plan)
    assert found is not None
    assert found.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("sizes", "dtype", "words"),
    [
        ({"hidden_size": 255}, "float32", "255 wide: bfloat16 pays from 256 on"),
        ({"hidden_size": 256}, "bfloat16", ""),
        ({"text_config": {"hidden_size": 64}, "hidden_size": 512}, "float32", "64 wide"),
        ({"hidden_size": None}, "float32", "not known yet"),
    ],
)
def test_narrow_models_stay_in_fp32(make, model, sizes, dtype, words):
    found = frozen.choice(*make({"base_model": model(**sizes)}, device=WITH))
    assert found is not None
    assert found.dtype == dtype
    assert words in found.reason


def test_a_model_that_is_not_here_or_is_stored_packed(make, model):
    absent = frozen.choice(*make({"base_model": {"huggingface_id": "somebody/something"}}, device=WITH))
    assert absent is not None
    assert absent.dtype == "float32"
    packed = model(quantization_config={"quant_method": "gptq"})
    assert frozen.choice(*make({"base_model": packed}, device=WITH)) is None


def test_what_was_measured_decides_from_then_on(make, model, monkeypatch):
    made = make({"base_model": model(hidden_size=512)}, device=WITH)
    assert frozen.known_gain(WITH, 512) is None
    frozen.remember_gain(WITH, 512, 1.19)
    frozen.remember_gain(WITH, 256, 4.0)
    found = frozen.choice(*made)
    assert found == ("float32", "measured on this machine: products in bfloat16 are 1.2 times as fast")
    assert frozen.known_gain(DeviceSpec("cpu", "another processor"), 512) is None
    frozen.remember_gain(WITH, 512, 1.2)
    found = frozen.choice(*made)
    assert found is not None
    assert found.dtype == "bfloat16"
    frozen.remember_gain(WITH, 1024, 0.5)
    wider = frozen.choice(*make({"base_model": model(hidden_size=4096)}, device=WITH))
    assert wider is not None
    assert wider.dtype == "float32", "wider ones are as the widest that is timed"
    monkeypatch.setenv("LLAMAFARM_CALIBRATION", "off")
    assert frozen.known_gain(WITH, 256) is None


@pytest.mark.parametrize("content", ["", "[]", '{"a processor": "fast"}', "\x00"])
def test_a_damaged_file_is_none(monkeypatch, tmp_path, content):
    monkeypatch.setenv("LLAMAFARM_HOME", str(tmp_path))
    (tmp_path / "products.json").write_text(content)
    assert frozen.known_gain(WITH, 256) is None
    frozen.remember_gain(WITH, 256, 2.0)
    assert frozen.known_gain(WITH, 256) == 2.0


def test_nothing_heavy_is_needed():
    assert heavy_after("import llamafarm_tuners.pytorch.frozen") == set()
