"""Stage ppo before it is started, and models in the words of an older transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.api import Decision, ResumePoint
from llamafarm.api.backend import MARKER, backend_folder
from llamafarm.errors import Problem, StrategyError
from llamafarm.models.locate import locate
from llamafarm_tuners.llamafactory.environment import BACKEND, PPO, backend_for
from llamafarm_tuners.llamafactory.older import older_config, older_files, older_tokenizer
from llamafarm_tuners.llamafactory.rows import Form
from llamafarm_tuners.llamafactory.translate import translate

LORA = {"type": "lora"}


@pytest.fixture
def ready(marked):
    """The environment of stage ppo, as its marker tells."""
    folder = backend_folder(PPO.name)
    folder.mkdir(parents=True)
    (folder / MARKER).write_text((marked / MARKER).read_text())


@pytest.fixture
def judge(tmp_path):
    """A reward model as a run of stage rm leaves one."""
    folder = tmp_path / "judge"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "builtin:tiny"}))
    (folder / "value_head.safetensors").touch()
    return folder


def found(make, options, *, resume=None):
    tuner, plan = make({"stage": "ppo", **options}, LORA)
    return list(tuner.check(replace(plan, resume=resume)))


def problems(make, options, **kwargs):
    return [one for one in found(make, options, **kwargs) if isinstance(one, Problem)]


def test_each_stage_has_its_environment():
    assert [backend_for(stage) for stage in ("sft", "rm", "ppo")] == [BACKEND, BACKEND, PPO]


def test_it_is_not_set_up(make, marked, judge):
    (problem,) = problems(make, {"reward_model": str(judge)})
    assert problem.id == "LF-PLUGIN-070"
    assert problem.hint == "run: llamafarm backends setup llamafactory-ppo"


def test_accepted(make, ready, judge):
    (decision,) = [
        one for one in found(make, {"reward_model": str(judge)}) if getattr(one, "subject", "") == "stage ppo"
    ]
    assert isinstance(decision, Decision)
    assert problems(make, {"reward_model": str(judge)}) == []


@pytest.mark.parametrize(
    ("options", "id_", "words"),
    [
        ({"reward_model": ""}, "LF-STRATEGY-100", "needs reward_model"),
        ({"reward_model": "nowhere"}, "LF-STRATEGY-100", "no value_head.safetensors"),
        ({"base_model": {"huggingface_id": "some/model"}, "reward_model": "api"}, "LF-STRATEGY-101", "hf download"),
        ({"resume_from_checkpoint": "x"}, "LF-STRATEGY-083", "does not go on"),
        ({"training": {"packing": True}}, "LF-STRATEGY-083", "no packing"),
        ({"training": {"save_strategy": "epoch"}}, "LF-STRATEGY-083", "at steps alone"),
        ({"training": {"eval_strategy": "steps"}}, "LF-STRATEGY-083", "no eval_strategy"),
    ],
)
def test_refused(make, ready, judge, options, id_, words):
    options = {"reward_model": str(judge), **options}
    if options["reward_model"] == "api":
        options |= {"reward_model": "http://127.0.0.1:1", "arguments": {"reward_model_type": "api"}}
    told = [one for one in problems(make, options) if one.id != "LF-RUN-040"]
    told = [one for one in told if one.id != "LF-STRATEGY-087"]  # the marker's list of arguments is a short one
    assert [one.id for one in told] == [id_]
    assert words in str(told[0])


def test_an_adapter_for_another_base(make, ready, judge):
    (judge / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "other/model"}))
    (problem,) = problems(make, {"reward_model": str(judge)})
    assert problem.id == "LF-STRATEGY-100"
    assert "adapter for other/model" in str(problem)


def test_it_does_not_go_on(make, ready, judge):
    (problem,) = problems(make, {"reward_model": str(judge)}, resume=ResumePoint())
    assert problem.id == "LF-STRATEGY-083"


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_its_arguments(make, judge, kind):
    if kind == "full":
        (judge / "adapter_config.json").unlink()
    options = {"stage": "ppo", "reward_model": str(judge), "training": {"save_strategy": "no"}}
    tuner, plan = make(options, LORA)
    told = translate(tuner.config, plan, form=Form(), held_out=False, data=Path("/d"), output=Path("/o"))
    assert (told["reward_model"], told["reward_model_type"]) == (str(judge), kind)
    assert (told["save_strategy"], told["save_steps"]) == ("steps", 999_999)


def test_the_embedded_model_in_the_older_words(tmp_path):
    source = locate("builtin:tiny").folder
    assert source
    older = older_files(source, tmp_path / "older")
    config = json.loads((older / "config.json").read_text())
    assert (config["rope_theta"], config["torch_dtype"]) == (10000.0, "float32")
    assert not {"rope_parameters", "dtype"} & config.keys()
    tokenizer = json.loads((older / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["additional_special_tokens"] == ["<|im_start|>", "<|im_end|>"]
    assert (older / "model.safetensors").resolve() == (source / "model.safetensors").resolve()
    assert older_files(older, tmp_path / "again") == older


def test_scaled_rotary_embeddings_keep_their_figures():
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}
    assert older_config({"rope_parameters": rope}) == {
        "rope_theta": 5e5,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
    }
    neox = {"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 7.0, "partial_rotary_factor": 0.25}}
    assert older_config(neox) == {"model_type": "gpt_neox", "rotary_emb_base": 7.0, "rotary_pct": 0.25}


def test_rotary_embeddings_of_several_kinds_are_refused():
    rope = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    with pytest.raises(StrategyError, match=r"several kinds.*LF-STRATEGY-101"):
        older_config({"rope_parameters": rope})


@given(st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text(max_size=8)))
def test_what_is_said_alike_in_both_stays(values):
    config = {name: value for name, value in values.items() if name not in ("dtype", "rope_parameters")}
    assert older_config(config) == config
    told = {name: value for name, value in values.items() if name not in ("backend", "extra_special_tokens")}
    assert older_tokenizer(told, has_tokenizer=True) == told
