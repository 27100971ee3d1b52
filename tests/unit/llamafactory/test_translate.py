"""A strategy in LLaMA-Factory's words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.api import DeviceSpec
from llamafarm_tuners.llamafactory.config import NATIVE, LlamaFactoryConfig
from llamafarm_tuners.llamafactory.rows import Form
from llamafarm_tuners.llamafactory.translate import OURS, translate

GOLDEN = Path(__file__).parent / "golden"
CASES = {
    "lora": ({"training": {"max_steps": 7}}, {"type": "lora", "r": 4, "alpha": 8, "target_modules": ["q_proj"]}),
    "qlora": ({"training": {"bf16": True}}, {"type": "qlora", "r": 8}),
    "dora": ({}, {"type": "dora", "r": 8}),
    "full": ({"training": {"packing": True, "save_steps": -1}}, {"type": "full"}),
    "freeze": ({}, {"type": "freeze", "freeze_trainable_layers": 1, "freeze_trainable_modules": ["mlp"]}),
    "the guide's": (
        {
            "finetuning_type": "lora", "template": "llama2", "quantization_bit": 4, "double_quantization": True,
            "lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.1, "lora_target": "q_proj,v_proj", "stage": "sft",
            "packing": False, "upcast_layernorm": True, "use_unsloth": False,
        },
        None,
    ),
    "dpo": ({"stage": "dpo", "arguments": {"pref_loss": "orpo", "pref_beta": 0.2}}, {"type": "lora"}),
    "evaluated": (
        {"training": {"eval_strategy": "steps", "eval_steps": 5, "save_steps": 10, "load_best_model_at_end": True,
                      "early_stopping": True, "compute_metrics": True, "warmup_steps": 3, "group_by_length": True}},
        {"type": "lora", "use_rslora": True, "modules_to_save": ["lm_head"]},
    ),
}  # fmt: skip


def arguments(make, options, method=None, **kwargs):
    tuner, plan = make(options, method)
    where = {"data": Path("/data"), "output": Path("/output")}
    given = {"form": Form(), "held_out": "eval_strategy" in options.get("training", {}), **where, **kwargs}
    found = translate(tuner.config, plan, **given)
    assert Path(found["model_name_or_path"], "config.json").is_file()
    return found | {"model_name_or_path": "MODEL"}


@pytest.mark.parametrize("name", CASES)
def test_golden(make, name):
    found = json.dumps(arguments(make, *CASES[name]), indent=2) + "\n"
    assert found == (GOLDEN / f"{name.replace(' ', '-').replace(chr(39), '')}.json").read_text(encoding="utf-8")


def test_the_last_answer_alone(make):
    assert arguments(make, {}, {"type": "lora"}, form=Form(mask_history=True))["mask_history"] is True


def test_on_a_gpu_the_cpu_is_not_asked_for(make):
    tuner, plan = make({"training": {"fp16": True}}, {"type": "lora"}, DeviceSpec("cuda", "a card"))
    found = translate(tuner.config, plan, form=Form(), held_out=False, data=Path("/d"), output=Path("/o"))
    assert "use_cpu" not in found
    assert found["fp16"] is True


def test_a_held_out_side_makes_val_size_idle(make):
    options = {"arguments": {"val_size": 0.1}}
    assert arguments(make, options, {"type": "lora"})["val_size"] == 0.1
    assert "val_size" not in arguments(make, options, {"type": "lora"}, held_out=True)


@given(text=st.text(max_size=30))
def test_whatever_a_value_says_no_key_comes_of_it(text):
    from llamafarm.api import RunPlan
    from llamafarm_methods.hooks import llamafarm_methods

    lora = next(method for method in llamafarm_methods() if method.name == "lora")
    base = {"base_model": {"huggingface_id": "builtin:tiny"}}
    plan = RunPlan("t", (lora(lora.Config()),), DeviceSpec("cpu", "a CPU"), Path("out"), (), {})
    known = {"form": Form(), "held_out": False, "data": Path("/d"), "output": Path("/o")}
    plain = translate(LlamaFactoryConfig.model_validate(base), plan, **known)
    said = {**base, "template": text, "arguments": {"default_system": text}}
    found = translate(LlamaFactoryConfig.model_validate(said), plan, **known)
    assert set(found) - set(plain) == {"template", "default_system"}
    assert json.loads(json.dumps(found))["default_system"] == text


def test_no_argument_that_we_set_stands_among_the_native_ones():
    assert not set(NATIVE) & set(OURS)
