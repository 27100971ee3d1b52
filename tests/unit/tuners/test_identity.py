"""What checkpoints are made from, and what a difference means for going on."""

from __future__ import annotations

import pytest

from llamafarm.api import BaseModelConfig, PreparedData
from llamafarm.errors import StrategyError
from llamafarm.models._load import load_tokenizer
from llamafarm_tuners.pytorch.identity import differences, identity

BEFORE = {
    "data": "a" * 64,
    "base": "b" * 64,
    "tokenizer": "c" * 64,
    "template": "d" * 64,
    "processes": 1,
    "precision": "bf16",
    "base_dtype": "float32",
    "device": "cpu (a CPU)",
    "seed": 42,
    "methods": ["lora"],
    "versions": {"torch": "2.1", "peft": "0.1"},
}


def refused(before, now, *, allow=False):
    with pytest.raises(StrategyError) as caught:
        differences(before, now, allow=allow)
    return [(problem.id, problem.message) for problem in caught.value.problems]


@pytest.mark.parametrize("allow", [False, True])
def test_the_same_goes_on(allow):
    assert differences(BEFORE, dict(BEFORE), allow=allow) == []


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("data", "the rows, their order or their split"),
        ("base", "the weights of the base model"),
        ("tokenizer", "the tokenizer"),
        ("template", "the chat template"),
    ],
)
def test_nothing_goes_on_from_other_data_or_models(key, said, allow):
    (problem,) = refused(BEFORE, BEFORE | {key: "e" * 64}, allow=allow)
    was = BEFORE[key][:12]
    assert problem == ("LF-TRAIN-051", f"{said} changed since the checkpoint (digest {was}, now eeeeeeeeeeee)")


@pytest.mark.parametrize(
    ("key", "now", "said"),
    [
        ("processes", 2, "the number of processes was 1 and is 2"),
        ("precision", "fp16", "the precision was bf16 and is fp16"),
        ("base_dtype", "bfloat16", "the base's format was float32 and is bfloat16"),
    ],
)
def test_what_changes_the_course_needs_a_flag_and_is_said(key, now, said):
    assert refused(BEFORE, BEFORE | {key: now}) == [("LF-TRAIN-052", f"{said} now")]
    assert differences(BEFORE, BEFORE | {key: now}, allow=True) == [said]


def test_all_that_differs_is_said_at_once():
    now = BEFORE | {"data": "x", "processes": 2}
    assert [found for found, _ in refused(BEFORE, now)] == ["LF-TRAIN-051", "LF-TRAIN-052"]
    assert [found for found, _ in refused(BEFORE, now, allow=True)] == ["LF-TRAIN-051"]


@pytest.mark.parametrize("allow", [False, True])
def test_another_device_and_other_versions_are_noted(allow):
    now = BEFORE | {"device": "cuda (a GPU)", "seed": 43, "versions": {"torch": "2.2", "peft": "0.1", "trl": "1.0"}}
    assert differences(BEFORE, now, allow=allow) == [
        "the device was cpu (a CPU) and is cuda (a GPU)",
        "torch was 2.1 and is 2.2",
        "trl was None and is 1.0",
    ]
    assert differences(BEFORE, BEFORE | {"versions": {"torch": "2.1"}}, allow=allow) == ["peft was 0.1 and is None"]


def test_what_an_older_checkpoint_does_not_say_cannot_differ():
    assert differences({}, BEFORE, allow=False) == ["peft was None and is 0.1", "torch was None and is 2.1"]
    assert differences({"data": BEFORE["data"], "another": 1}, BEFORE | {"versions": {}}, allow=False) == []
    assert differences(BEFORE, {}, allow=False) == ["peft was 0.1 and is None", "torch was 2.1 and is None"]


@pytest.fixture
def made(make, tiny_model_dir):
    """The identity of a run, with some of it changed."""
    folder = str(tiny_model_dir("llama"))
    tokenizer = load_tokenizer(BaseModelConfig(huggingface_id=folder))

    def build(digest="0" * 64, template=tokenizer.chat_template, processes=1, precision="no", model=folder, **options):
        config, plan = make({"base_model": {"huggingface_id": model}} | options)
        tokenizer.chat_template = template
        data = PreparedData([], [], {}, digest)
        return identity(config, plan, data, tokenizer, processes=processes, precision=precision)

    return build


def test_each_thing_that_a_run_is_made_from_is_in_its_identity(made):
    first = made()
    assert first == made(), "the same things, the same identity"
    assert set(first) == set(BEFORE)
    assert (first["methods"], first["device"], first["seed"]) == (["lora"], "cpu (a CPU)", 42)
    assert "torch" in first["versions"]
    changed = {
        "data": {"digest": "1" * 64},
        "template": {"template": "{{ messages }}"},
        "processes": {"processes": 2},
        "precision": {"precision": "bf16"},
        "seed": {"training": {"seed": 7}},
        "base": {"model": "owner/not-on-this-machine"},
        "base_dtype": {"training": {"pure_bf16": True}},
    }
    for key, change in changed.items():
        assert [name for name, value in made(**change).items() if value != first[name]] == [key]


def test_a_model_from_scratch_has_no_base(made):
    assert made(model=None)["base"] is None


def test_a_checkpoint_of_other_things_is_refused_as_they_are_found(made):
    before = made()
    assert [found for found, _ in refused(before, made(digest="1" * 64))] == ["LF-TRAIN-051"]
    assert differences(before, made(), allow=False) == []
