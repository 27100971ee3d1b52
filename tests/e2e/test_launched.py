"""The command line in several processes, as launchers start it: one run, one folder, one that speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamafarm.api.launch import is_follower, world_size
from llamafarm.cli.guard import run as run_command
from llamafarm.testing.rows import make_fields

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "examples/accelerate/ddp.yaml")]
SETTINGS = [
    "--set",
    "training.logging_steps=1",
    "--set",
    "training.save_steps=2",
    "--set",
    "training.global_batch_size=8",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_fields(40)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def launched(launcher: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, str(ROOT / "cli.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def losses(run: str) -> list[float]:
    lines = [json.loads(line) for line in Path(run, "trainer_log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_two_processes_are_one_run(folder: Path) -> None:
    train = ["train", "--model", "builtin:tiny", "--dataset", "data.jsonl", "--max-steps", "4", *SETTINGS]
    train += ["--set", "method=[{type: lora, dropout: 0}, {type: bos-scaling}]"]
    assert run_command([*train, "--output", "one"]) == 0
    finished = launched(TORCHRUN, *train, "--output", "two")
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("phase=training") == 1, "one of them speaks"
    # float32, the gradient summed in another order, through Adam
    assert losses("two") == pytest.approx(losses("one"), rel=1e-5)
    assert {path.name for path in Path("two").iterdir()} == {path.name for path in Path("one").iterdir()}
    saved = {name: Path("two", name).read_bytes() for name in ("adapter_model.safetensors", "bos_zero_config.json")}

    manifest = Path("two/llamafarm/manifest.json")  # as a run leaves it that was killed
    manifest.write_text(manifest.read_text().replace('"status": "completed"', '"status": "running"'))
    resumed = launched(ACCELERATE, "train", "--resume", "two/checkpoint-2")
    assert resumed.returncode == 0, resumed.stderr
    assert "the result is that of a run that was never stopped" in resumed.stderr
    assert {name: Path("two", name).read_bytes() for name in saved} == saved, "bit by bit"


@pytest.mark.parametrize(
    ("told", "size", "follows"),
    [
        ({}, 1, False),
        ({"WORLD_SIZE": "2", "RANK": "0"}, 2, False),
        ({"WORLD_SIZE": "2", "RANK": "1"}, 2, True),
        ({"WORLD_SIZE": "1", "RANK": "1"}, 1, False),
        ({"WORLD_SIZE": "many", "RANK": "-1"}, 1, False),
    ],
)
def test_a_process_knows_which_one_it_is(told, size, follows, monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert (world_size(), is_follower()) == (size, follows)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_a_model_is_not_spread_over_processes(name, folder, monkeypatch, capsys):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    assert run_command(["train", "--model", "builtin:tiny", "--dataset", "data.jsonl", "--output", "out"]) == 2
    said = capsys.readouterr().err
    assert "LF-TRAIN-078" in said
    assert "on a CPU it silently trains plain copies" in said
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "false")
    train = ["train", "--model", "builtin:tiny", "--dataset", "data.jsonl", "--output", "out", "--dry-run"]
    assert run_command(train) == 0


def test_a_fine_tuner_that_would_be_started_twice_is_refused(folder, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    Path("lf.yaml").write_text(
        "name: x\nfine_tuner: {type: llamafactory, config: {base_model: builtin:tiny, dataset: data.jsonl}}\n"
    )
    assert run_command(["train", "--strategy", "lf.yaml", "--dry-run"]) == 2
    assert "LF-TRAIN-079" in capsys.readouterr().err
