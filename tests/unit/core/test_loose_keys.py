"""Options of a method that documents write among training settings, and methods that are asked for but not offered."""

from __future__ import annotations

import json

import jsonschema
import pytest

from llamafarm.cli.guard import run as run_command
from llamafarm.core.json_schema import json_schema
from llamafarm.core.load import load
from llamafarm.core.plan import methods_of
from llamafarm.core.registry import load_registry
from llamafarm.core.request import Flag, Request
from llamafarm.errors import LlamaFarmError


@pytest.fixture(scope="module")
def registry():
    return load_registry(())


def methods(registry, config, **request):
    config = {"base_model": "builtin:tiny", "dataset": "data.jsonl", **config}
    source = {"name": "loose", "fine_tuner": {"type": "pytorch", "config": config}}
    jsonschema.validate(source, json_schema(registry))
    path = request.pop("folder") / "loose.yaml"
    path.write_text(json.dumps(source), encoding="utf-8")
    loaded = load(Request(str(path), **request), registry)
    stack = methods_of(loaded.tuner_config, registry)
    return [(one.name, getattr(one.config, "bos_scaling_factor", getattr(one.config, "r", None))) for one in stack]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"use_bos_zero_training": True}, [("lora", 16), ("bos-scaling", 0.1)]),
        ({"bos_scaling_factor": 0.2}, [("lora", 16), ("bos-scaling", 0.2)]),
        ({"bos_scaling_factor": 0.2, "method": {"type": "dora", "r": 4}}, [("dora", 4), ("bos-scaling", 0.2)]),
        (
            {"use_bos_zero_training": True, "bos_scaling_factor": 0.05, "method": "lora"},
            [("lora", 16), ("bos-scaling", 0.05)],
        ),
        (
            {"use_bos_zero_training": True, "method": ["lora", {"type": "bos-scaling", "factor": 0.3}]},
            [("lora", 16), ("bos-scaling", 0.3)],
        ),
    ],
)
def test_they_put_their_method_on_the_stack(registry, tmp_path, config, expected):
    assert methods(registry, config, folder=tmp_path) == expected


@pytest.mark.parametrize("method", [{"type": "lora", "r": 4}, [{"type": "lora", "r": 4}, {"type": "bos-scaling"}]])
def test_from_the_command_line_too_and_what_the_file_says_stays(registry, tmp_path, method):
    expected = [("lora", 4), ("bos-scaling", 0.5)]
    flags = (
        Flag("bos_scaling_factor", 0.5, "--bos-scaling-factor"),
        Flag("use_bos_zero_training", True, "--use-bos-zero-training"),
    )
    assert methods(registry, {"method": method}, folder=tmp_path, flags=flags) == expected
    assert methods(registry, {"method": method}, folder=tmp_path, sets=("bos_scaling_factor=0.5",)) == expected


@pytest.mark.parametrize("swap", ["method=dora", "method={type: dora, r: 16}", "method=[{type: dora, r: 16}]"])
def test_a_flag_puts_its_method_on_the_stack_that_replaces_the_files(registry, tmp_path, swap):
    flags = (Flag("use_bos_zero_training", True, "--use-bos-zero-training"),)
    found = methods(registry, {"method": "lora"}, folder=tmp_path, flags=flags, sets=(swap, "bos_scaling_factor=0.5"))
    assert found == [("dora", 16), ("bos-scaling", 0.5)]


def test_two_that_disagree_are_refused(registry, tmp_path):
    config = {"bos_scaling_factor": 0.2, "method": ["lora", {"type": "bos-scaling", "bos_scaling_factor": 0.3}]}
    with pytest.raises(LlamaFarmError, match=r"disagree: 0\.2 here, 0\.3 at"):
        methods(registry, config, folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("xlora", "mixes adapters that are trained already"),
        ("X-LoRA", "trained already"),
        ("bone", "miss"),
        ("multitask_prompt_tuning", "prompt-tuning"),
    ],
)
def test_what_is_not_offered_says_why(name, reason, capsys):
    assert run_command(["train", "--model", "builtin:tiny", "--dataset", "x.jsonl", "--method", name, "--dry-run"]) != 0
    said = capsys.readouterr().err
    assert "LF-STRATEGY-095" in said
    assert reason in said


def test_loose_keys_of_one_block_in_short_and_in_long(registry, tmp_path, capsys):
    """`dataset: FILE` beside one of its options, as flat configurations have them."""
    path = tmp_path / "flat.yaml"
    path.write_text(
        "dataset: data.jsonl\nmax_samples: 100\nbos_scaling_factor: 0.1\ncutoff_len: 512\n", encoding="utf-8"
    )
    assert run_command(["validate", str(path)]) == 0, capsys.readouterr().err
