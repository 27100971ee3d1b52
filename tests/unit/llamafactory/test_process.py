"""The process and what it tells."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from llamafarm.errors import (
    DiskError,
    HardwareError,
    LlamaFarmError,
    NetworkError,
    NumericError,
    PluginError,
    StrategyError,
)
from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.llamafactory.course import Course
from llamafarm_tuners.llamafactory.environment import child_environment
from llamafarm_tuners.llamafactory.failures import failure
from llamafarm_tuners.llamafactory.process import Tail
from llamafarm_tuners.llamafactory.result import adopt, checkpoints


def test_a_line_that_is_not_complete_waits(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    assert list(tail.lines()) == []
    path.write_text('{"a": 1}\n{"b"')
    assert list(tail.lines()) == [{"a": 1}]
    with path.open("a") as file:
        file.write(': 2}\nnot json\n{"c": 3}\n')
    assert list(tail.lines()) == [{"b": 2}, {"c": 3}]


def test_its_environment_is_an_allow_list():
    given = {
        "PATH": "/usr/bin", "HOME": "/h", "PYTHONPATH": "x", "VIRTUAL_ENV": "x", "SECRET": "x", "HF_TOKEN": "t",
        "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "3,4", "FORCE_TORCHRUN": "1", "WANDB_API_KEY": "x", "HF_HOME": "/c",
    }  # fmt: skip
    found = child_environment(Path("/v/bin/python"), given, hub=False, one_gpu=True)
    assert found["PATH"] == "/v/bin:/usr/bin"
    assert (found["CUDA_VISIBLE_DEVICES"], found["HF_HUB_OFFLINE"], found["HF_HOME"]) == ("3", "1", "/c")
    assert not {"PYTHONPATH", "VIRTUAL_ENV", "SECRET", "HF_TOKEN", "FORCE_TORCHRUN", "WANDB_API_KEY"} & found.keys()
    online = child_environment(Path("/v/bin/python"), given, hub=True, one_gpu=False)
    assert online["HF_TOKEN"] == "t"
    assert "HF_HUB_OFFLINE" not in online


def test_what_it_tells_becomes_events(tmp_path):
    run = RecordingRun(tmp_path)
    course = Course(run, "a base", "lora", None, tmp_path)
    for line in (
        {"type": "model", "trainable": 3, "total": 10, "steps": 4},
        {"type": "log", "step": 2, "steps": 4, "loss": 1.5, "learning_rate": 0.1, "grad_norm": 2.0, "epoch": 0.5},
        {"type": "log", "step": 2, "steps": 4, "eval_loss": 1.25, "epoch": 0.5},
        {"type": "checkpoint", "step": 2},
        {"type": "log", "step": 4, "steps": 4, "train_loss": 1.0},
        {"type": "end", "step": 4, "steps": 4, "stopped": False},
        {"type": "something new"},
    ):
        course.hear(line)
    assert [event.type for event in run.events] == ["model", "phase", "log", "eval", "checkpoint"]
    assert run.events[2].fields["loss"] == 1.5
    assert (course.trainable, course.total, course.step, course.stopped) == (3, 10, 4, False)
    with pytest.raises(NumericError, match="LF-NUMERIC-001"):
        course.hear({"type": "log", "step": 5, "steps": 5, "loss": math.nan})


@pytest.mark.parametrize(
    ("message", "kind", "id_"),
    [
        ("CUDA out of memory. Tried to allocate", HardwareError, "LF-HARDWARE-010"),
        ("Failed to load tokenizer.", PluginError, "LF-PLUGIN-075"),
        ("Target modules {'x'} not found in the base model.", StrategyError, "LF-STRATEGY-091"),
        ("Cannot find valid samples, check data/README.md", PluginError, "LF-PLUGIN-075"),
        ("Some keys are not used by the HfArgumentParser: ['x']", StrategyError, "LF-STRATEGY-091"),
        ("No space left on device", DiskError, "LF-DISK-010"),
        ("Max retries exceeded", NetworkError, "LF-NET-001"),
        ("something\nelse", PluginError, "LF-PLUGIN-075"),
    ],
)
def test_why_it_ended(make, message, kind, id_):
    _, plan = make({}, {"type": "lora"})
    error = failure(1, {"kind": "E", "message": message}, Path("log"), [], plan, kept=False)
    assert type(error) is kind
    assert [problem.id for problem in error.problems] == [id_]
    assert "\n" not in str(error)


def test_it_was_killed(make):
    _, plan = make({}, {"type": "lora"})
    error: LlamaFarmError = failure(-9, None, Path("/log"), ["checkpoint-5"], plan, kept=True)
    assert str(error) == (
        "/log: LLaMA-Factory was ended by SIGKILL, as the system does when memory runs out; checkpoint-5 stay, "
        "to go on with resume_from_checkpoint [LF-PLUGIN-077]"
    )


def test_it_could_not_even_speak(make, tmp_path):
    _, plan = make({}, {"type": "lora"})
    (tmp_path / "log").write_text("one\n\nImportError: no torch\n")
    assert "one | ImportError: no torch" in str(failure(1, None, tmp_path / "log", [], plan, kept=False))
    assert "it said nothing" in str(failure(1, None, tmp_path / "none", [], plan, kept=False))


def test_what_it_leaves_is_adopted_with_the_name_of_the_base(tmp_path):
    output, folder = tmp_path / "output", tmp_path / "run"
    (output / "checkpoint-10").mkdir(parents=True)
    (output / "checkpoint-9").mkdir()
    folder.mkdir()
    (folder / "log.jsonl").symlink_to("../output/log.jsonl")
    (output / "log.jsonl").write_text("{}\n")
    for place in (output, output / "checkpoint-9", output / "checkpoint-10"):
        (place / "adapter_config.json").write_text(
            '{"base_model_name_or_path": "/private/x", "target_modules": ["b", "a"]}'
        )
    for place in (output / "checkpoint-9", output / "checkpoint-10"):
        (place / "trainer_state.json").write_text("{}")
    adopt(output, folder, "builtin:tiny")
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-9", "checkpoint-10"]
    assert not (folder / "log.jsonl").is_symlink()
    for path in folder.rglob("adapter_config.json"):
        assert '"builtin:tiny"' in path.read_text()
        assert "/private" not in path.read_text()
