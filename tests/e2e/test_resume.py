"""A run that was stopped and goes on ends as one that never was: the same weights, losses and logs, to the last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from llamafarm.api import ResumePoint
from llamafarm.errors import StrategyError
from llamafarm.testing.run_context import RecordingRun

pytestmark = pytest.mark.e2e

TIMES = ("throughput", "elapsed_time", "remaining_time", "peak_memory")


def stopping(step: int) -> type[RecordingRun]:
    """A run in which somebody asks to stop while that step is taken."""

    class Stopping(RecordingRun):
        def emit(self, type: str, /, **fields: Any) -> None:  # noqa: A002
            super().emit(type, **fields)
            self.stop_requested = self.stop_requested or (type == "log" and fields["step"] >= step)

    return Stopping


def weights(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest()
        for file in sorted([*folder.glob("*.safetensors"), *folder.glob("checkpoint-*/*.safetensors")])
    }


def log(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "trainer_state.json").read_text())


CASES: dict[str, dict[str, Any]] = {
    "lora-dropout": {"method": "lora", "options": {"dropout": 0.2}},
    "full": {"method": "full", "learning_rate": 1e-3},
    "accumulation": {"gradient_accumulation_steps": 3, "batch_size": 2, "options": {"dropout": 0.1}},
    "packing": {"packing": True, "packing_length": 128, "max_seq_length": 64, "batch_size": 1},
    "curriculum": {"curriculum": {"by": "words"}},
    "by-length": {"group_by_length": True},
    "checkpointing-cosine": {"gradient_checkpointing": True, "lr_scheduler_type": "cosine", "warmup_steps": 3},
    "sgd": {"optim": "sgd"},
    "qlora": {"method": "qlora", "options": {"dropout": 0.1}, "held_out": 4, "eval_strategy": "steps", "eval_steps": 2},
    "8-bit optimizer": {"optim": "adamw_8bit", "options": {"r": 64, "dropout": 0.1}},
    "growing rank": {"options": {"ranks": [2, 4, 8], "dropout": 0.1}, "held_out": 4, "eval_steps": 2},
    "growing dora": {"method": "dora", "options": {"ranks": [2, 5], "dropout": 0.1}, "packing": True, "batch_size": 1},
    "eva": {"options": {"init_lora_weights": "eva", "r": 4, "dropout": 0.1}, "fused": True},
    "corda": {
        "options": {"init_lora_weights": "corda", "r": 4, "dropout": 0.1, "corda_config": {"samples": 8}},
        "held_out": 6,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
    },
    "adalora": {
        "method": "adalora",
        "options": {"init_r": 6, "target_r": 2, "tinit": 2, "tfinal": 4, "lora_dropout": 0.1},
        "held_out": 6,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
    },
    "adalora, in rounds": {"method": "adalora", "options": {"init_r": 6, "target_r": 2, "deltaT": 3}},
    "boft": {"method": "boft", "options": {"boft_block_size": 8, "boft_n_butterfly_factor": 2, "boft_dropout": 0.2}},
    "p-tuning": {
        "method": "p-tuning",
        "options": {"num_virtual_tokens": 3},
        "held_out": 6,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
    },
    "evaluation": {"held_out": 6, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True},
    "worse-and-worse": {
        "held_out": 6,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "greater_is_better": True,
        "load_best_model_at_end": True,
        "early_stopping": True,
        "early_stopping_patience": 7,
    },
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stop", [4, 7])
def test_a_resumed_run_is_bit_identical(fit, case, stop):
    if case in ("qlora", "8-bit optimizer"):
        pytest.importorskip("bitsandbytes")
    options = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 2, "logging_steps": 1} | CASES[case]
    straight = fit(**options)
    folder = fit.root / "stopped"
    with pytest.raises(KeyboardInterrupt):
        fit(folder=folder, run=stopping(stop), **options)
    assert (folder / f"checkpoint-{stop}").is_dir()
    resumed = fit(folder=folder, resume=ResumePoint(), **options)
    (event,) = resumed.events("resumed")
    assert event == {"step": stop, "exact": True, "reasons": []}
    whole, now = weights(straight.folder), weights(resumed.folder)
    assert {name: now[name] for name in whole if name in now} == {name: whole[name] for name in whole if name in now}
    assert {name for name in whole if "/" not in name} <= set(now)
    assert log(resumed.folder) == log(straight.folder)
    assert state(resumed.folder)["log_history"] == state(straight.folder)["log_history"]
    for name in ("train_loss", "train_tokens", "train_steps", "eval_loss"):
        assert resumed.result.metrics.get(name) == straight.result.metrics.get(name), name
    assert resumed.result.best_step == straight.result.best_step


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 7e-3),
        ("lr_scheduler_type", "constant"),
        ("warmup_steps", 6),
        ("weight_decay", 0.9),
        ("adam_beta1", 0.2),
        ("adam_beta2", 0.5),
        ("adam_epsilon", 0.1),
        ("max_grad_norm", 1e-3),
    ],
)
def test_a_setting_that_was_changed_counts_from_the_next_step(fit, name, value):
    options = {"save_strategy": "steps", "save_steps": 3, "logging_steps": 1, "learning_rate": 1e-3}
    straight = fit(**options)
    folder = fit.root / "stopped"
    with pytest.raises(KeyboardInterrupt):
        fit(folder=folder, run=stopping(4), **options)
    change = ResumePoint(allow_changes=True, changes=(f"training.{name} was otherwise",))
    resumed = fit(folder=folder, resume=change, **options | {name: value})
    rates, before = ([line["lr"] for line in log(done) if "lr" in line] for done in (resumed.folder, straight.folder))
    assert rates[:4] == before[:4]
    later = before[4:]
    expected = {"learning_rate": [7 * rate for rate in later], "lr_scheduler_type": [1e-3 for _ in later]}
    if name in expected:
        assert rates[4:] == pytest.approx(expected[name])
    elif name != "warmup_steps":
        assert rates == before
    assert weights(resumed.folder)["adapter_model.safetensors"] != weights(straight.folder)["adapter_model.safetensors"]


def test_a_checkpoint_by_name_is_gone_on_from(fit):
    options = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None, "options": {"dropout": 0.1}}
    straight = fit(**options)
    expected, kept = weights(straight.folder), log(straight.folder)
    again = fit(folder=straight.folder, resume=ResumePoint(straight.folder / "checkpoint-4"), **options)
    assert again.events("resumed")[0]["step"] == 4
    assert weights(again.folder) == expected
    assert log(again.folder) == kept
    assert "checkpoint-6 is later than checkpoint-4" in " ".join(e["message"] for e in again.events("warning"))


def test_a_damaged_checkpoint_costs_the_steps_after_the_one_before(fit):
    options = {"save_strategy": "steps", "save_steps": 3, "options": {"dropout": 0.1}}
    straight = fit(**options)
    folder = fit.root / "stopped"
    with pytest.raises(KeyboardInterrupt):
        fit(folder=folder, run=stopping(7), **options)
    with (folder / "checkpoint-7" / "optimizer.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        byte = file.read(1)[0]
        file.seek(-3, 2)
        file.write(bytes([byte ^ 1]))
    resumed = fit(folder=folder, resume=ResumePoint(), **options)
    assert resumed.events("resumed")[0]["step"] == 6
    (warning,) = resumed.events("warning")
    assert "optimizer.safetensors is not what was written" in warning["message"]
    assert weights(resumed.folder)["adapter_model.safetensors"] == weights(straight.folder)["adapter_model.safetensors"]


def test_without_a_checkpoint_a_resumed_run_begins(fit):
    straight = fit(save_strategy="no")
    folder = fit.root / "killed"
    folder.mkdir()
    (folder / ".writing-x").mkdir()
    resumed = fit(folder=folder, resume=ResumePoint(), save_strategy="no")
    assert resumed.events("resumed") == [{"step": 0, "exact": True, "reasons": []}]
    assert weights(resumed.folder) == weights(straight.folder)
    assert not (folder / ".writing-x").exists()


def test_asking_for_a_checkpoint_trains_on(fit):
    class Asking(RecordingRun):
        def emit(self, type: str, /, **fields: Any) -> None:  # noqa: A002
            super().emit(type, **fields)
            self.checkpoint_requested = self.checkpoint_requested or (type == "log" and fields["step"] == 3)

    done = fit(run=Asking, save_strategy="no")
    assert [event["step"] for event in done.events("checkpoint")] == [3]
    assert len(done.losses) == 10


@pytest.mark.parametrize("what", ["data", "template", "base", "processes"])
def test_what_a_checkpoint_was_made_from_must_be_the_same(fit, tmp_path, what):
    folder = fit.root / "stopped"
    with pytest.raises(KeyboardInterrupt):
        fit(folder=folder, run=stopping(3), digest="aa", save_strategy="no")
    path = folder / "checkpoint-3" / "llamafarm_checkpoint.json"
    manifest = json.loads(path.read_text())
    manifest["identity"][what] = 2 if what == "processes" else "00"
    path.write_text(json.dumps(manifest))
    with pytest.raises(StrategyError, match="LF-TRAIN-052" if what == "processes" else "LF-TRAIN-051"):
        fit(folder=folder, resume=ResumePoint(), digest="aa", save_strategy="no")
    allowed = ResumePoint(allow_changes=True)
    if what == "processes":
        resumed = fit(folder=folder, resume=allowed, digest="aa", save_strategy="no")
        (event,) = resumed.events("resumed")
        assert event["exact"] is False
        assert event["reasons"] == ["the number of processes was 2 and is 1"]
        assert "not exact: the number of processes" in resumed.events("warning")[0]["message"]
    else:
        with pytest.raises(StrategyError):
            fit(folder=folder, resume=allowed, digest="aa", save_strategy="no")


def test_other_libraries_are_said_not_hidden(fit):
    folder = fit.root / "stopped"
    with pytest.raises(KeyboardInterrupt):
        fit(folder=folder, run=stopping(3), save_strategy="no")
    path = folder / "checkpoint-3" / "llamafarm_checkpoint.json"
    manifest = json.loads(path.read_text())
    before = manifest["identity"]["versions"]
    now, before["peft"] = before["peft"], "0.1.0"
    path.write_text(json.dumps(manifest))
    resumed = fit(folder=folder, resume=ResumePoint(), save_strategy="no")
    assert resumed.events("resumed")[0]["reasons"] == [f"peft was 0.1.0 and is {now}"]


def test_a_disk_that_is_full_for_a_while_costs_checkpoints_and_nothing_else(fit, monkeypatch):
    from llamafarm_tuners.pytorch import _checkpoints

    straight = fit(save_strategy="steps", save_steps=2)
    original = _checkpoints.write_state

    def refuse(state, folder):
        if state.step in (4, 6):
            raise OSError(28, "No space left on device")
        original(state, folder)

    monkeypatch.setattr(_checkpoints, "write_state", refuse)
    done = fit(save_strategy="steps", save_steps=2)
    assert [event["step"] for event in done.events("checkpoint")] == [2, 8, 10]
    lost = [event["message"] for event in done.events("warning")]
    assert [f"step {step}: the checkpoint is lost: cannot write checkpoint-{step}: No space" in " ".join(lost)
            for step in (4, 6)] == [True, True]  # fmt: skip
    assert weights(done.folder)["adapter_model.safetensors"] == weights(straight.folder)["adapter_model.safetensors"]


@pytest.mark.timeout(900)  # eight interpreters, one after the other where there is one core
def test_two_processes_resume_as_one_run(tiny_model_dir, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TWO)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

    def train(name: str, stop: int = 0, *, resume: bool = False, fall: int = 0) -> subprocess.CompletedProcess[str]:
        arguments = [str(tiny_model_dir("llama")), str(tmp_path / name), str(stop), str(int(resume)), str(fall)]
        return subprocess.run(
            [*torchrun, str(script), *arguments],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=250,
        )

    straight = train("straight")
    assert straight.returncode == 0, straight.stderr
    fallen = train("broken", fall=6)  # the first process is ended too, else this waits
    assert fallen.returncode != 0
    assert not (tmp_path / "broken" / "adapter_model.safetensors").exists()
    for stop in (7, 0):
        done = train("broken", stop, resume=True)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "broken" / f"checkpoint-{stop or 8}").is_dir()
    one, two = weights(tmp_path / "straight"), weights(tmp_path / "broken")
    assert one["adapter_model.safetensors"] == two["adapter_model.safetensors"]
    assert one["checkpoint-8/optimizer.safetensors"] == two["checkpoint-8/optimizer.safetensors"]
    assert log(tmp_path / "straight") == log(tmp_path / "broken")


TWO = """
import os
import signal
import sys
from pathlib import Path

from llamafarm_methods.lora import Lora
from llamafarm_tuners.pytorch.tuner import PytorchTuner

from llamafarm.api import DeviceSpec, Example, Message, PreparedData, ResumePoint, RowRef, RunPlan
from llamafarm.testing.run_context import RecordingRun

model, folder, stop, resume = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1"
fall = int(sys.argv[5])
folder.mkdir(exist_ok=True)


class Stopping(RecordingRun):
    def emit(self, type, /, **fields):
        super().emit(type, **fields)
        self.stop_requested = self.stop_requested or (type == "log" and fields["step"] == stop)


class Falling(RecordingRun):  # the second process is asked once a step whether it is to stop
    steps = 0

    @property
    def stop_requested(self):
        self.steps += 1
        if self.steps == fall:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    @stop_requested.setter
    def stop_requested(self, value):
        pass


rows = [
    Example(RowRef("x", i), (Message("user", f"Lock {i * 7}."), Message("assistant", "Locked. " * (i % 3 + 1))))
    for i in range(13)
]
training = {"learning_rate": 1e-2, "max_steps": 8, "logging_steps": 1, "batch_size": 2,
            "gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 4, "save_steps": 4}
tuner = PytorchTuner(PytorchTuner.Config(base_model={"huggingface_id": model}, training=training))
point = ResumePoint() if resume else None
plan = RunPlan("test", (Lora(Lora.Config(dropout=0.2)),), DeviceSpec("cpu", "a CPU"), folder, (), {}, point)
data = PreparedData(rows[:9], rows[9:], {"read": 13, "trained": 9, "held_out": 4}, "")
try:
    tuner.fit(plan, data, (Falling if fall and os.environ["RANK"] == "1" else Stopping)(folder))
except KeyboardInterrupt:
    assert stop
"""


def test_other_rngs_would_be_noticed(fit, monkeypatch):
    """The comparison can fail: without the generators' state, dropout draws other masks."""
    from llamafarm_tuners.pytorch import _state

    options = {"options": {"dropout": 0.2}, "save_strategy": "no"}
    straight = fit(**options)
    folder = fit.root / "stopped"
    with pytest.raises(KeyboardInterrupt):
        fit(folder=folder, run=stopping(4), **options)
    monkeypatch.setattr(_state, "set_random_state", lambda *_: None)
    resumed = fit(folder=folder, resume=ResumePoint(), **options)
    assert weights(resumed.folder) != weights(straight.folder)
