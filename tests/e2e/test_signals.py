"""Runs in processes of their own that are asked to stop, killed, and resumed by the command line."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from forked import Forks

from llamafarm.cli.guard import run as main
from llamafarm.testing.rows import make_fields

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def forks(tmp_path_factory) -> Iterator[Forks]:
    with Forks(tmp_path_factory.mktemp("said")) as made:
        yield made


@pytest.fixture(scope="module")
def work(tiny_model_dir, tmp_path_factory, forks) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_fields(60)))
    strategy = {
        "name": "long",
        "fine_tuner": {
            "config": {
                "base_model": str(tiny_model_dir("llama")),
                "dataset": "rows.jsonl",
                "method": {"type": "lora", "r": 4, "dropout": 0.1},
                "training": {
                    "max_steps": 60,
                    "batch_size": 2,
                    "logging_steps": 1,
                    "save_steps": 15,
                    "max_seq_length": 64,
                },
            }
        },
    }
    (folder / "strategy.yaml").write_text(json.dumps(strategy))
    code, said = forks.run(["train", "-s", "strategy.yaml", "-o", "straight"], folder, environment(folder))
    assert code == 0, said
    return folder


@pytest.fixture
def start(work, forks):
    """Start a command in a process of its own."""
    return lambda *argv: forks.start(argv, work, environment(work))


@pytest.fixture
def run(work, forks):
    """Run a command in a process of its own: its exit code, and what it said."""
    return lambda *argv: forks.run(argv, work, environment(work))


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMAFARM")}
    return kept | {"LLAMAFARM_HOME": str(folder / ".home"), "XDG_STATE_HOME": str(folder / ".state"), "NO_COLOR": "1"}


def result(folder: Path) -> str:
    return sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def log(folder: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
    return [(line["current_steps"], line.get("loss"), line.get("lr")) for line in lines]


def manifest(folder: Path) -> dict:
    return json.loads((folder / "llamafarm" / "manifest.json").read_text())


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGHUP", 75), ("SIGINT", 130)])
def test_a_signal_ends_the_step_writes_a_checkpoint_and_says_how_it_goes_on(work, start, run, name, code):
    process = start("train", "-s", "strategy.yaml", "-o", name)
    process.wait_for("step=20/60")
    process.send_signal(getattr(signal, name))
    assert process.wait() == code, process.said()
    said = process.said()
    assert f"go on with: llamafarm train --resume {name}" in said
    assert "Traceback" not in said
    facts = manifest(work / name)
    assert (facts["status"], facts["exit_code"]) == ("interrupted", code)
    last = max(int(path.name.split("-")[1]) for path in (work / name).glob("checkpoint-*"))
    assert 20 <= last <= log(work / name)[-1][0] <= last, "the step that was running is kept"
    code, said = run("finetune", "resume", name)
    assert code == 0, said
    assert result(work / name) == result(work / "straight")
    assert log(work / name) == log(work / "straight")
    steps = [
        json.loads(line).get("step")
        for line in (work / name / "llamafarm" / "events.jsonl").read_text().splitlines()
        if json.loads(line)["type"] == "log"
    ]
    assert steps == list(range(1, 61)), "no step twice"


def test_a_killed_run_goes_on_with_the_same_command(work, start, run, monkeypatch, capsys):
    command = ["train", "-s", "strategy.yaml", "-o", "killed", "--set", "training.resume_from_checkpoint=true"]
    process = start(*command)
    process.wait_for("step=40/60")
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    monkeypatch.chdir(work)
    assert main(command[:-2]) == 9
    said = capsys.readouterr().err
    assert "(killed)" in said
    assert "llamafarm train --resume killed" in said
    code, said = run(*command)
    assert code == 0, said
    assert "resumed from checkpoint-30" in said
    assert result(work / "killed") == result(work / "straight")
    assert log(work / "killed") == log(work / "straight")
    assert main(command) == 9
    assert "LF-RUN-013" in capsys.readouterr().err


def test_two_signals_stop_now_and_tear_nothing(work, start, run):
    process = start("train", "-s", "strategy.yaml", "-o", "twice")
    process.wait_for("step=25/60")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75, process.said()
    assert run("train", "--resume", "twice")[0] == 0
    assert result(work / "twice") == result(work / "straight")


@pytest.mark.parametrize("how", ["signal", "file"])
def test_a_checkpoint_can_be_asked_for(work, start, how):
    process = start("train", "-s", "strategy.yaml", "-o", f"asked-{how}")
    process.wait_for("step=5/60")
    if how == "signal":
        process.send_signal(signal.SIGUSR1)
    else:
        (work / f"asked-{how}" / "llamafarm" / "checkpoint-now").touch()
    process.wait_for("checkpoint=")
    assert process.wait() == 0, process.said()
    assert result(work / f"asked-{how}") == result(work / "straight")


def test_a_run_that_is_written_has_one_owner(work, start, monkeypatch, capsys):
    process = start("train", "-s", "strategy.yaml", "-o", "owned")
    process.wait_for("step=2/60")
    process.send_signal(signal.SIGSTOP)
    monkeypatch.chdir(work)
    try:
        for command in (["--resume", "owned"], ["-s", "strategy.yaml", "-o", "owned", "--overwrite"]):
            assert main(["train", *command]) == 9
            assert f"process {process.pid}" in capsys.readouterr().err
    finally:
        process.send_signal(signal.SIGCONT)
    assert process.wait() == 0
    assert result(work / "owned") == result(work / "straight")


@pytest.mark.parametrize(
    ("argv", "code", "id_"),
    [
        (["--resume", "nowhere"], 9, "LF-RUN-011"),
        (["--resume", "straight/checkpoint-7"], 9, "LF-RUN-012"),
        (["--resume", "straight"], 9, "LF-RUN-013"),
        (["--resume", "straight", "--max-steps", "70"], 2, "LF-TRAIN-054"),
        (["--resume", "straight", "--seed", "1", "--allow-changes"], 2, "LF-TRAIN-053"),
        (["-s", "strategy.yaml", "-o", "new", "--set", "training.resume_from_checkpoint=straight"], 9, "LF-RUN-014"),
    ],
)
def test_what_cannot_go_on_is_refused_with_a_reason(work, argv, code, id_, monkeypatch, capsys):
    monkeypatch.chdir(work)
    assert main(["train", *argv]) == code
    said = capsys.readouterr().err
    assert f"[{id_}]" in said
    assert "Traceback" not in said


def test_a_finished_run_trains_on_if_that_is_wanted(work, run):
    run("train", "-s", "strategy.yaml", "-o", "more", "--max-steps", "30")
    code, said = run("train", "--resume", "more", "--max-steps", "40", "--allow-changes")
    assert code == 0, said
    assert "not exact: training.max_steps was 30 and is 40" in said
    facts = manifest(work / "more")
    assert facts["status"] == "completed"
    assert facts["resumed"][0]["changes"] == ["training.max_steps was 30 and is 40"]
    assert log(work / "more")[-1][0] == 40


def test_an_edited_row_is_noticed(work, run):
    run("train", "-s", "strategy.yaml", "-o", "edited", "--max-steps", "15")
    rows = work / "rows.jsonl"
    text = rows.read_text()
    rows.write_text(text.replace("e", "E", 1))
    try:
        code, said = run("train", "--resume", "edited", "--max-steps", "20", "--allow-changes")
    finally:
        rows.write_text(text)
    assert code == 2, said
    assert "the rows, their order or their split changed" in said
