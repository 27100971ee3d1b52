"""Two processes on one machine train as one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, sys
from pathlib import Path

from llamafarm_methods.lora import Lora
from llamafarm_tuners.pytorch.tuner import PytorchTuner

from llamafarm.api import DeviceSpec, Example, Message, PreparedData, RowRef, RunPlan
from llamafarm.testing.run_context import RecordingRun

model, folder, batch = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
folder.mkdir(exist_ok=True)
if os.environ.get("RANK", "0") == os.environ.get("SMALL"):  # the memory of this process takes one row at a time
    from llamafarm_tuners.pytorch import _evaluate, _step

    def out_of_memory(model, batch, original=_step.token_losses, **rest):
        if (len(batch.input_ids) if batch.bounds is None else len(batch.bounds) - 1) > int(os.environ["MOST"]):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return original(model, batch, **rest)

    _step.token_losses = _evaluate.token_losses = out_of_memory

rows = [
    Example(RowRef("x", i), (Message("user", f"Lock {i * 7}."), Message("assistant", "Locked. " * (i % 3 + 1))),
            task=(None, "A", "B")[(i > 8) + (i == 10)])
    for i in range(13)
]
training = {"learning_rate": 1e-2, "max_steps": 8, "logging_steps": 1, "batch_size": batch,
            "gradient_accumulation_steps": int(sys.argv[4]), "eval_strategy": "steps", "eval_steps": 4, "save_steps": 4}
tuner = PytorchTuner(PytorchTuner.Config(base_model={"huggingface_id": model}, training=training))
plan = RunPlan("test", (Lora(Lora.Config(dropout=0)),), DeviceSpec("cpu", "a CPU"), folder, (), {})
run = RecordingRun(folder)
data = PreparedData(rows[:9], rows[9:], {"read": 13, "trained": 9, "held_out": 4}, "")
result = tuner.fit(plan, data, run)
told = ("log", "eval", "checkpoint", "phase", "warning")
events = [{"type": e.type, **e.fields} for e in run.events if e.type in told]
Path(f"{folder}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps([events, dict(result.metrics)]))
"""


pytestmark = pytest.mark.e2e
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture
def launch(tiny_model_dir, tmp_path: Path):
    """A function: launcher, name, rows of a micro-step and their number, environment → the ended process."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)

    def start(launcher, name, batch, accumulation=2, **extra):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)} | extra
        command = [*launcher, str(script), str(tiny_model_dir("llama")), str(tmp_path / name)]
        return subprocess.run(
            [*command, str(batch), str(accumulation)], capture_output=True, text=True, env=environment, check=False
        )

    return start


def told(folder: Path, name: str):
    return json.loads((folder / f"{name}.json").read_text())


def require_equal(events, others):
    for key in ("loss", "grad_norm", "eval_loss", "eval_loss_A", "eval_loss_B"):
        values = [[event[key] for event in some if key in event] for some in (events, others)]
        assert len(values[0]) >= 2
        assert values[1] == pytest.approx(values[0], abs=2e-6)


def test_two_processes_train_as_one(launch, tmp_path: Path):
    for launcher, name, batch in (([sys.executable], "one", 4), (TWO, "two", 2)):
        finished = launch(launcher, name, batch)
        assert finished.returncode == 0, finished.stderr
    (alone, figures), (together, same), (other, _) = (told(tmp_path, name) for name in ("one-0", "two-0", "two-1"))
    assert other == [], "the second process says nothing"
    require_equal(alone, together)
    assert same["train_tokens"] == figures["train_tokens"]
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


@pytest.mark.parametrize("small", ["0", "1"])
def test_where_one_process_has_not_enough_memory_both_take_fewer_rows(launch, tmp_path: Path, small):
    finished = launch([sys.executable], "one", 4)
    assert finished.returncode == 0, finished.stderr
    finished = launch(TWO, "two", 4, 1, SMALL=small, MOST="1")
    assert finished.returncode == 0, finished.stderr
    (alone, _), (together, _) = told(tmp_path, "one-0"), told(tmp_path, "two-0")
    require_equal(alone, together)
    said = [(event.get("step"), event["was"], event["rows"]) for event in together if event["type"] == "warning"]
    assert said[:2] == [(1, 4, 2), (1, 2, 1)], "all go down together, once"
    assert [step for step, *_ in said[2:]] in ([], [None]), "an evaluation tells of its own memory, on the main process"


def test_where_nothing_fits_all_processes_end_with_the_reason(launch, tmp_path: Path):
    finished = launch(TWO, "two", 2, SMALL="1", MOST="0")
    assert finished.returncode != 0
    assert "out of memory on a CPU" in finished.stderr
    assert "LF-HARDWARE-010" in finished.stderr
    assert not (tmp_path / "two-0.json").exists()
