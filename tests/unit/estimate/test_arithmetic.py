"""The arithmetic that fine-tuners share, against what libraries really build."""

from __future__ import annotations

import random

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llamafarm.api import AdapterSpec
from llamafarm.core.registry import load_registry
from llamafarm.estimate.adapters import trained
from llamafarm.estimate.architecture import read_architecture
from llamafarm.estimate.arithmetic import OPTIMIZER_BYTES, micro_batches, packs, quantized_bytes, training_flops
from llamafarm.testing.run_context import RecordingRun

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 400,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("name", OPTIMIZER_BYTES)
def test_state_of_optimizers(name):
    """What a step of the real one leaves for each parameter; in 8 bits a table of 256 values is shared by all."""
    if "8bit" in name or "32bit" in name:
        pytest.importorskip("bitsandbytes")
    from llamafarm.api import TrainingConfig
    from llamafarm_tuners.pytorch._optimizer import build_optimizer

    weight = torch.nn.Linear(256, 256, bias=False)
    optimizer = build_optimizer(weight, TrainingConfig(optim=name, weight_decay=0.0), "cpu")
    weight.weight.grad = torch.ones_like(weight.weight)
    optimizer.step()
    kept = [
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and key not in ("step", "qmap1", "qmap2")
    ]
    assert sum(kept) / weight.weight.numel() == pytest.approx(OPTIMIZER_BYTES[name], rel=0.01)


def built(model_type):
    options = {name: value for name, value in SMALL.items() if model_type != "gpt_neox" or "key_value" not in name}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options))


METHODS = [
    {"type": "lora"},
    {"type": "lora", "r": 4, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 2]},
    {"type": "lora", "target_modules": "conservative", "rank_pattern": {"q_proj": 2}},
    {"type": "lora", "target_modules": "balanced", "exclude_modules": ["k_proj"]},
    {"type": "lora", "target_modules": r".*\.mlp\..*", "modules_to_save": ["lm_head"]},
    {"type": "dora"},
    {"type": "full"},
    {"type": "freeze", "freeze_trainable_layers": 2},
    {"type": "freeze", "freeze_trainable_modules": ["mlp"], "freeze_extra_modules": ["lm_head"]},
    {"type": "loha"},
    {"type": "adalora", "init_r": 6, "target_r": 2},
    {"type": "boft", "boft_n_butterfly_factor": 2},
    {"type": "boft", "boft_block_size": 0, "boft_block_num": 4, "target_modules": ["down_proj"]},
    {"type": "prompt-tuning"},
    {"type": "prefix-tuning", "num_virtual_tokens": 3},
    {"type": "p-tuning"},
    {"type": "p-tuning", "encoder_hidden_size": 24, "encoder_reparameterization_type": "LSTM", "encoder_num_layers": 3},
    {"type": "hra"},
    {"type": "fourierft", "n_frequency": 30},
    {"type": "ia3", "target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
]


@pytest.mark.parametrize("options", METHODS, ids=str)
def test_trained_parameters_are_those_of_the_real_model(options):
    method = load_registry().require("method", options["type"])
    method = method(method.Config(**{name: value for name, value in options.items() if name != "type"}))
    model = built("llama")
    expected = trained(read_architecture(model.config.to_dict()), [method.adapter()]).parameters
    applied = method.apply(model, RecordingRun(None))
    assert expected == sum(parameter.numel() for parameter in applied.parameters() if parameter.requires_grad)


def test_fused_projections_of_another_architecture():
    model = built("gpt_neox")
    spec = AdapterSpec("lora", {"r": 8, "target_modules": "conservative"})
    expected = trained(read_architecture(model.config.to_dict()), [spec])
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=["query_key_value"]))
    assert expected.parameters == adapted.get_nb_trainable_parameters()[0]


def test_an_unknown_kind_is_counted_and_said():
    found = trained(read_architecture({"model_type": "llama", **SMALL}), [AdapterSpec("new", {})])
    assert found.parameters > 0
    assert "new" in found.notes[0]


def test_packed_bytes_are_those_of_bitsandbytes():
    torch, functional = pytest.importorskip("torch"), pytest.importorskip("bitsandbytes.functional")
    architecture = read_architecture({"model_type": "llama", **SMALL, "num_hidden_layers": 1})
    for double in (False, True):
        real = 0
        for linear in architecture.linears:
            packed, state = functional.quantize_4bit(
                torch.randn(linear.outputs, linear.inputs), quant_type="nf4", compress_statistics=double
            )
            real += packed.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if double else 0)
        expected = quantized_bytes(architecture, {"load_in_4bit": True, "bnb_4bit_use_double_quant": double})
        assert expected == pytest.approx(real, rel=0.01)  # the last block of a small weight is not full


def test_the_largest_micro_batch_is_near_the_one_that_chance_makes():
    generator = random.Random(3)
    lengths = [int(generator.lognormvariate(4.7, 0.6)) + 1 for _ in range(4000)]
    expected = micro_batches(lengths[:500], len(lengths), 8)
    sums = [sum(lengths[at : at + 8]) for at in range(0, len(lengths), 8)]
    assert expected.most == pytest.approx(max(sums), rel=0.15)  # the normal bound on sums of 8 skewed lengths
    assert expected.mean == pytest.approx(sum(sums) / len(sums), rel=0.08)  # 500 of 4,000 lengths


def test_a_micro_batch_never_holds_more_than_all_rows():
    found = micro_batches([10, 20], 2, 8)
    assert (found.most, found.count, found.padded) == (30.0, 1, 40.0)


def test_packs_are_full_but_for_what_there_is():
    assert packs([100], 1000, 1000, 2).most == 2000
    assert packs([100], 3, 1000, 2).most == 300


def test_operations_of_a_full_training_are_six_for_each_parameter_and_token():
    architecture = read_architecture({"model_type": "llama", **SMALL})
    options = {"tokens": 10.0, "attended": 0.0, "learned": 1.0, "adapters": 0, "head_trained": True}
    full = training_flops(architecture, **options, base_trained=1.0, recomputed=False)
    assert full == 60 * architecture.active_parameters
    again = training_flops(architecture, **options, base_trained=1.0, recomputed=True)
    body = architecture.linear_parameters
    assert again - full == 20 * body
