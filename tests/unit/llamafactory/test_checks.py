"""What is refused before LLaMA-Factory is started, with the alternative."""

from __future__ import annotations

import pytest

from llamafarm.api import Decision
from llamafarm.errors import Problem

LORA = {"type": "lora"}


def problems(make, options, method=None):
    tuner, plan = make(options, method)
    return [found for found in tuner.check(plan) if isinstance(found, Problem)]


@pytest.mark.parametrize(
    ("options", "method", "id_", "words"),
    [
        ({"lora_rank": 8}, LORA, "LF-STRATEGY-080", "method and lora_rank both say"),
        ({"stage": "sft", "training": {"stage": "pt"}}, LORA, "LF-STRATEGY-080", "disagree"),
        ({}, {"type": "lora", "bias": "all"}, "LF-STRATEGY-081", "bias: all"),
        ({}, {"type": "lora", "alpha": 2.5}, "LF-STRATEGY-081", "alpha: 2.5"),
        ({}, {"type": "lora", "ranks": [4, 8]}, "LF-STRATEGY-081", "ranks"),
        ({}, {"type": "lora", "target_modules": ".*q_proj"}, "LF-STRATEGY-081", "name the modules"),
        ({}, {"type": "lora", "layers_to_transform": [1]}, "LF-STRATEGY-081", "layers_to_transform"),
        ({}, {"type": "lora", "init_lora_weights": "pissa"}, "LF-STRATEGY-081", "init_lora_weights"),
        (
            {},
            {"type": "qlora", "quantization": {"bnb_4bit_compute_dtype": "float16"}},
            "LF-STRATEGY-081",
            "training.bf16 or fp16",
        ),
        ({"finetuning_type": "full", "quantization_bit": 4}, None, "LF-STRATEGY-082", "full on a quantized base"),
        ({"use_dora": True, "quantization_bit": 4}, None, "LF-STRATEGY-082", "DoRA on a quantized base"),
        ({}, {"type": "bos-scaling"}, "LF-STRATEGY-082", "use type: pytorch, or train without it"),
        ({"reward_model": "x"}, LORA, "LF-STRATEGY-083", "has no reward model"),
        (
            {"stage": "rm", "training": {"load_best_model_at_end": True, "save_strategy": "epoch"}},
            LORA,
            "LF-STRATEGY-083",
            "the best model",
        ),
        ({"stage": "rm"}, {"type": "full"}, "LF-STRATEGY-083", "one with its head"),
        ({"stage": "dpo", "dataset": {"train_on_inputs": True}}, LORA, "LF-STRATEGY-083", "cannot learn prompts"),
        ({"training": {"curriculum": {"by": "words"}}}, LORA, "LF-STRATEGY-084", "type: pytorch"),
        ({"training": {"heartbeat_timeout": 5}}, LORA, "LF-STRATEGY-084", "ddp_timeout"),
        ({"training": {"fp16": True}}, LORA, "LF-STRATEGY-084", "fp16 needs CUDA"),
        ({"dataset": {"over_long": "drop"}, "template": "phi"}, LORA, "LF-STRATEGY-084", "reads the rows itself"),
        ({"evaluation": {"exact_match": True}}, LORA, "LF-STRATEGY-084", "llamafarm evaluate"),
        ({"arguments": {"output_dir": "x"}}, LORA, "LF-STRATEGY-086", "set output_dir"),
        ({"arguments": {"deepspeed": "x"}}, LORA, "LF-STRATEGY-086", "one process"),
        ({"arguments": {"do_train": False}}, LORA, "LF-STRATEGY-086", "a run trains"),
        ({"arguments": {"galore_rnk": 4}}, LORA, "LF-STRATEGY-087", "did you mean 'galore_rank'?"),
        ({"arguments": {"ref_model": "other"}}, LORA, "LF-SECURITY-020", "--set arguments.ref_model=VALUE"),
        (
            {"base_model": {"huggingface_id": "builtin:tiny", "template": "phi"}},
            LORA,
            "LF-STRATEGY-084",
            "set template: phi",
        ),
        ({"template": "lama3"}, LORA, "LF-STRATEGY-088", "did you mean 'llama3'?"),
        (
            {"training": {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_steps": 5}},
            LORA,
            "LF-STRATEGY-089",
            "the same value",
        ),
        ({"use_unsloth": True}, LORA, "LF-PLUGIN-078", "not installed"),
        ({"resume_from_checkpoint": "nowhere"}, LORA, "LF-RUN-040", "no checkpoint"),
    ],
)
def test_refused(make, marked, options, method, id_, words):
    (problem,) = problems(make, options, method)
    assert problem.id == id_
    assert words in str(problem)


def test_going_on_without_the_best(make, marked):
    from dataclasses import replace

    from llamafarm.api import ResumePoint

    options = {"training": {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}}
    tuner, plan = make(options, LORA)
    found = list(tuner.check(replace(plan, resume=ResumePoint())))
    assert [one.id for one in found if isinstance(one, Problem)] == ["LF-RUN-041"]


def test_it_is_not_set_up(make, monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMAFARM_HOME", str(tmp_path))
    (problem,) = problems(make, {}, LORA)
    assert problem.id == "LF-PLUGIN-070"
    assert "llamafarm backends setup llamafactory" in problem.hint


def test_a_default_that_it_has_not_is_left_out_and_said(make, marked):
    tuner, plan = make({}, LORA)
    config = tuner.config.model_copy(update={"training": tuner.config.training.model_copy(update={"fp16": True})})
    found = list(type(tuner)(config).check(plan))
    assert [one for one in found if isinstance(one, Problem)] == []
    assert Decision("training.fp16", "off", "fp16 needs CUDA; on cpu LLaMA-Factory ignores it") in found


@pytest.mark.parametrize("options", [{"finetuning_type": "freeze"}, {"quantization_bit": 4}, {"use_dora": True}])
def test_its_own_keys_stand_for_a_method(make, options):
    tuner, _ = make({})
    assert tuner.default_method(options) is None
    assert tuner.default_method({"template": "llama2"}) == "lora"
