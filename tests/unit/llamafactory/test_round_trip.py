"""LLaMA-Factory's file → a strategy → LLaMA-Factory's arguments: each argument arrives as it was written, and back."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.api import DeviceSpec, RunPlan
from llamafarm.cli.import_strategy import strategy_lines
from llamafarm.core.load import load
from llamafarm.core.registry import load_registry
from llamafarm.core.request import Request
from llamafarm_tuners.llamafactory.rows import Form
from llamafarm_tuners.llamafactory.translate import translate

REGISTRY = load_registry(())
ALWAYS = {"model_name_or_path": "builtin:tiny", "dataset": "data.jsonl", "output_dir": "saves/x"}
rates = st.floats(1e-6, 1e-2)
shares = st.floats(0, 0.9)
few = st.integers(1, 64)
TRAINING = {
    "per_device_train_batch_size": few, "gradient_accumulation_steps": few, "learning_rate": rates,
    "num_train_epochs": st.floats(0.5, 9), "lr_scheduler_type": st.sampled_from(["cosine", "linear"]),
    "warmup_ratio": st.floats(0, 0.5), "weight_decay": shares, "max_grad_norm": st.floats(0.1, 5), "logging_steps": few,
    "save_steps": few, "save_total_limit": few, "bf16": st.booleans(), "seed": st.integers(0, 2**31), "cutoff_len": few,
    "adam_beta2": st.floats(0.5, 0.999), "optim": st.just("adamw_torch"), "dataloader_num_workers": st.integers(0, 4),
}  # fmt: skip
NATIVE = {
    "template": st.sampled_from(["llama2", "phi", "chatml"]), "packing": st.booleans(),
    "train_on_prompt": st.booleans(), "mask_history": st.booleans(), "neftune_noise_alpha": few,
    "preprocessing_num_workers": few, "ddp_timeout": few, "compute_accuracy": st.booleans(),
    "disable_shuffling": st.booleans(), "resize_vocab": st.booleans(),
    "upcast_layernorm": st.booleans(), "use_unsloth": st.just(False), "flash_attn": st.sampled_from(["auto", "sdpa"]),
    "rope_scaling": st.sampled_from(["linear", "yarn"]), "loraplus_lr_ratio": st.floats(1, 32), "pref_beta": shares,
    "default_system": st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20),
}  # fmt: skip
LORA = {
    "finetuning_type": st.just("lora"), "lora_rank": few, "lora_alpha": few, "lora_dropout": shares,
    "lora_target": st.sampled_from(["all", "q_proj,v_proj"]), "use_rslora": st.booleans(), "use_dora": st.just(False),
    "quantization_bit": st.sampled_from([4, 8]), "double_quantization": st.booleans(),
}  # fmt: skip
FREEZE = {
    "finetuning_type": st.just("freeze"), "freeze_trainable_layers": st.integers(-3, 3).filter(bool),
    "freeze_trainable_modules": st.sampled_from(["all", "mlp"]), "freeze_extra_modules": st.just("embed_tokens"),
}  # fmt: skip
FULL = {"finetuning_type": st.just("full")}


def files(adapted: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    needed = {"finetuning_type": adapted["finetuning_type"], "stage": st.sampled_from(["sft", "dpo", "kto"])}
    free = {**TRAINING, **NATIVE, **{name: value for name, value in adapted.items() if name != "finetuning_type"}}
    return st.fixed_dictionaries(needed, optional=free)


def theirs(arguments: dict[str, Any]) -> dict[str, Any]:
    """What LLaMA-Factory gets of the strategy that a file of its own becomes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.yaml"
        path.write_text("\n".join(strategy_lines(arguments)) + "\n", encoding="utf-8")
        config = load(Request(str(path)), REGISTRY).tuner_config
    plan = RunPlan("t", (), DeviceSpec("cpu", "a CPU"), Path("out"), (), {})
    return translate(config, plan, form=Form(), held_out=False, data=Path("/d"), output=Path("/o"))


@settings(max_examples=25, deadline=None)
@given(st.one_of(files(LORA), files(FREEZE), files(FULL)))
def test_each_argument_arrives_as_it_was_written(arguments):
    found = theirs({**ALWAYS, **arguments})
    assert {name: found.get(name) for name in arguments} == arguments


@settings(max_examples=12, deadline=None)
@given(st.one_of(files(LORA), files(FREEZE), files(FULL)))
def test_and_what_comes_of_it_goes_the_same_way_again(arguments):
    first = theirs({**ALWAYS, **arguments})
    ours = {"dataset_dir", "overwrite_output_dir", "report_to", "use_cpu", "trust_remote_code"}
    ours |= {name for name, value in first.items() if name.endswith("_strategy") and value == "no"}
    again = theirs({**{name: value for name, value in first.items() if name not in ours}, "dataset": "data.jsonl"})
    assert again == first


@pytest.mark.parametrize(
    ("given", "arrives"),
    [
        ({"finetuning_type": "qlora"}, {"finetuning_type": "lora", "quantization_bit": 4}),
        ({"finetuning_type": "qlora", "quantization_bit": 8}, {"finetuning_type": "lora", "quantization_bit": 8}),
        ({"finetuning_type": "lora", "neat_packing": True}, {"packing": True, "neat_packing": True}),
        ({"stage": "sft"}, {"stage": "sft", "finetuning_type": "lora"}),
    ],
)
def test_what_it_spells_otherwise(given, arrives):
    found = theirs({**ALWAYS, **given})
    assert {name: found[name] for name in arrives} == arrives


def test_the_share_that_is_held_out_is_a_splitters():
    lines = strategy_lines({**ALWAYS, "stage": "sft", "val_size": 0.25})
    assert lines[-1] == "data_splitter: {type: random, config: {eval_percentage: 25}}"
    assert not any("val_size" in line for line in lines)


def test_a_text_of_any_signs_stays_one_value(tmp_path):
    odd = "a: 'b' #c \"d\" ${HOME} \\ {e}"
    (line,) = [one for one in strategy_lines({**ALWAYS, "stage": "sft", "default_system": odd}) if "system" in one]
    assert json.loads(line.partition(": ")[2]) == odd
