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
rows = [
    Example(RowRef("x", i), (Message("user", f"Lock {i * 7}."), Message("assistant", "Locked. " * (i % 3 + 1))),
            task=(None, "A", "B")[(i > 8) + (i == 10)])
    for i in range(13)
]
training = {"learning_rate": 1e-2, "max_steps": 8, "logging_steps": 1, "batch_size": batch,
            "gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 4, "save_steps": 4}
tuner = PytorchTuner(PytorchTuner.Config(base_model={"huggingface_id": model}, training=training))
plan = RunPlan("test", (Lora(Lora.Config(dropout=0)),), DeviceSpec("cpu", "a CPU"), folder, (), {})
run = RecordingRun(folder)
data = PreparedData(rows[:9], rows[9:], {"read": 13, "trained": 9, "held_out": 4}, "")
result = tuner.fit(plan, data, run)
events = [{"type": e.type, **e.fields} for e in run.events if e.type in ("log", "eval", "checkpoint", "phase")]
Path(f"{folder}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps([events, dict(result.metrics)]))
"""


@pytest.mark.e2e
def test_two_processes_train_as_one(tiny_model_dir, tmp_path: Path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    model = str(tiny_model_dir("llama"))
    for launcher, name, batch in (([sys.executable], "one", 4), (torchrun, "two", 2)):
        command = [*launcher, str(script), model, str(tmp_path / name), str(batch)]
        finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert finished.returncode == 0, finished.stderr
    (alone, figures), (together, same), (other, _) = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one-0", "two-0", "two-1")
    )
    assert other == [], "the second process says nothing"
    for key in ("loss", "grad_norm", "eval_loss", "eval_loss_A", "eval_loss_B"):
        values = [[event[key] for event in events if key in event] for events in (alone, together)]
        assert len(values[0]) >= 2
        assert values[1] == pytest.approx(values[0], abs=2e-6)
    assert same["train_tokens"] == figures["train_tokens"]
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
