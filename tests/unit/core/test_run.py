from __future__ import annotations

import json
import logging
import os
import signal

import pluggy
import pytest
from core_test_components import Cpu, Cuda, Dora, Full, Hash, Lora, Pytorch
from core_test_components import registry as make_registry

from llamafarm.api import hookimpl, hooks
from llamafarm.core.load import load
from llamafarm.core.lock import OwnerLock
from llamafarm.core.plan import make_plan
from llamafarm.core.request import Flag, Request
from llamafarm.core.run import train
from llamafarm.errors import (
    DataError,
    ExitCode,
    HardwareError,
    ModelError,
    NumericError,
    RunDirectoryError,
    StrategyError,
)

STRATEGY = """\
name: try
fine_tuner:
  config:
    base_model: ./base
    dataset: data.jsonl
    training: {hub_token: "${MY_TOKEN:-}"}
"""


class Failing(Pytorch):
    """Fails before (`steps` 0) or after its first step."""

    steps = 0
    error: type[BaseException] = KeyboardInterrupt

    def fit(self, plan, data, run):
        if self.steps:
            super().fit(plan, data, run)
        (plan.output_dir / "half").write_text("half")
        raise self.error


@pytest.fixture
def project(write, tmp_path):
    write("{}", "base/config.json")
    write('{"instruction": "a", "output": "b"}\n{"instruction": "c", "output": "d"}\n', "data.jsonl")
    return write(STRATEGY)


def run(registry, name, *flags, sets=(), listener=lambda event: None):
    loaded = load(Request(name, tuple(Flag(*flag) for flag in flags), sets), registry)
    return train(loaded, make_plan(loaded, registry), registry, listener)


def manifest(tmp_path):
    return json.loads((tmp_path / "output/llamafarm/manifest.json").read_text())


def test_a_finished_run_leaves_its_record(registry, project, tmp_path):
    events = []
    outcome = run(registry, project, listener=events.append)
    own = tmp_path / "output/llamafarm"
    assert (own / "strategy.yaml").read_text() == STRATEGY
    assert "# from: s.yaml:4:17" in (own / "resolved.yaml").read_text()
    facts = manifest(tmp_path)
    assert facts["status"] == "completed"
    assert facts["metrics"] == {"train_loss": 1.0}
    assert facts["rows"]["trained"] == 2
    assert facts["run_id"] == outcome.run_id
    assert facts["versions"]["torch"]
    lines = [json.loads(line) for line in (own / "events.jsonl").read_text().splitlines()]
    assert [line["type"] for line in lines] == [event.type for event in events]
    assert lines[-1]["type"] == "result"


class Accounting(Pytorch):
    """Says what became of the rows before it trains, and fails."""

    def fit(self, plan, data, run):
        super().fit(plan, data, run)
        rows = {**data.counts, "trained": 1, "dropped_too_long": 1}
        run.emit("ledger", rows=rows, tokens={"train": {"tokens": 5}}, mask_audit={"train": "sound"})
        run.emit("paths", batches="padded")
        raise ModelError.of("LF-MODEL-001", "broken")


def test_what_became_of_the_rows_is_recorded_before_training(project, tmp_path):
    registry = make_registry(Lora, Accounting, Cpu, Hash)
    with pytest.raises(ModelError):
        run(registry, project)
    facts = manifest(tmp_path)
    assert facts["rows"] == {"read": 2, "trained": 1, "held_out": 0, "copies": 0, "dropped_too_long": 1}
    assert facts["tokens"] == {"train": {"tokens": 5}}
    assert facts["paths"] == {"batches": "padded"}
    assert facts["mask_audit"] == {"train": "sound"}


def test_failing_before_the_first_step_leaves_nothing(project, tmp_path):
    registry = make_registry(Lora, Failing, Cpu, Hash)
    with pytest.raises(KeyboardInterrupt):
        run(registry, project, sets=("output_dir=deep/er/output",))
    assert not (tmp_path / "deep").exists()


def test_failing_later_keeps_what_there_is_and_says_so(project, tmp_path, monkeypatch):
    monkeypatch.setattr(Failing, "steps", 1)
    registry = make_registry(Lora, Failing, Cpu, Hash)
    with pytest.raises(KeyboardInterrupt):
        run(registry, project)
    assert (tmp_path / "output/half").exists()
    facts = manifest(tmp_path)
    assert (facts["status"], facts["exit_code"]) == ("interrupted", ExitCode.INTERRUPTED)
    assert facts["error"].startswith("stopped by ")


def test_a_numeric_failure_records_its_exit_code(project, tmp_path, monkeypatch):
    class NanError(NumericError):
        def __init__(self):
            super().__init__(NumericError.of("LF-NUMERIC-001", "loss is nan").problems)

    monkeypatch.setattr(Failing, "steps", 1)
    monkeypatch.setattr(Failing, "error", NanError)
    with pytest.raises(NumericError):
        run(make_registry(Lora, Failing, Cpu, Hash), project)
    assert manifest(tmp_path)["exit_code"] == ExitCode.NUMERIC


def test_an_earlier_run_is_kept_unless_overwriting_succeeds(registry, project, tmp_path):
    run(registry, project)
    old = tmp_path / "output/adapter_model.safetensors"
    old.write_text("old")
    with pytest.raises(RunDirectoryError, match="--overwrite"):
        run(registry, project)
    overwrite = ("overwrite_output_dir", True, "--overwrite")
    with pytest.raises(KeyboardInterrupt):
        run(make_registry(Lora, Failing, Cpu, Hash), project, overwrite)
    assert old.read_text() == "old", "a run that never trained does not cost the old one"
    run(registry, project, overwrite)
    assert old.read_text() == "weights"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_ctrl_c_asks_training_to_stop_and_the_second_one_stops_at_once(project, tmp_path):
    seen = []

    class Interrupted(Pytorch):
        def fit(self, plan, data, run):
            run.emit("phase", name="training")
            signal.raise_signal(signal.SIGINT)
            seen.append(run.stop_requested)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second one was ignored")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(make_registry(Lora, Interrupted, Cpu, Hash), project)
    assert seen == [True]
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_a_model_loads_stops_at_once(project):
    class Loading(Pytorch):
        def fit(self, plan, data, run):
            run.emit("phase", name="loading model")
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("ignored")

    with pytest.raises(KeyboardInterrupt):
        run(make_registry(Lora, Loading, Cpu, Hash), project)


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_folders_and_live_runs_are_never_touched(registry, project, tmp_path, overwrite):
    flag = ("overwrite_output_dir", overwrite, "--overwrite")
    (tmp_path / "output").mkdir()
    (tmp_path / "output/thesis.tex").write_text("years of work")
    with pytest.raises(RunDirectoryError, match="holds no run of ours"):
        run(registry, project, flag)
    assert (tmp_path / "output/thesis.tex").read_text() == "years of work"
    (tmp_path / "output/thesis.tex").unlink()
    run(registry, project, flag)
    path = tmp_path / "output/llamafarm/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "running"}))
    with OwnerLock(tmp_path / "output", "theirs"), pytest.raises(RunDirectoryError, match=f"process {os.getpid()}"):
        run(registry, project, flag)


def test_secrets_are_in_no_file(registry, project, tmp_path, monkeypatch):
    class Chatty(Pytorch):
        def fit(self, plan, data, run):
            logging.getLogger("lib").warning("using %s", "hf_secret_value")
            run.emit("notice", message="token hf_secret_value")
            return super().fit(plan, data, run)

    monkeypatch.setenv("MY_TOKEN", "hf_secret_value")
    run(make_registry(Lora, Chatty, Cpu, Hash), project)
    texts = [path.read_text() for path in (tmp_path / "output").rglob("*") if path.is_file()]
    assert not any("hf_secret_value" in text for text in texts)
    assert any("using <redacted>" in text for text in texts)


def test_observers_watch_and_cannot_break_the_run(project):
    seen = []

    class Watcher:
        @hookimpl
        def llamafarm_run_started(self, run):
            seen.append(("started", run.run_id))
            raise RuntimeError("observer bug")

        @hookimpl
        def llamafarm_run_finished(self, run, result):
            seen.append(("finished", result.metrics["train_loss"]))

    manager = pluggy.PluginManager("llamafarm")
    manager.add_hookspecs(hooks)
    manager.register(Watcher(), "watcher")
    events = []
    outcome = run(make_registry(manager=manager), project, listener=events.append)
    assert seen == [("started", outcome.run_id), ("finished", 1.0)]
    assert "observer watcher: RuntimeError: observer bug" in [event.fields.get("message") for event in events]


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ("base_model: ./bse", ModelError, r"s\.yaml:2:35: "),
        ("dataset: null", StrategyError, "no dataset is given"),
        ("base_model: null", StrategyError, "no base model is given"),
        ("method: [lora, full]", StrategyError, "'lora' and 'full' do not stack"),
        ("method: dora", StrategyError, "cannot run method 'dora'"),
        ("dataset: dta.jsonl", DataError, r"data\.jsonl"),
    ],
)
def test_plans_are_refused_with_reasons_and_nothing_is_written(project, write, tmp_path, changes, error, match):
    class DoraKind(Dora):
        name = "dora"

        def adapter(self):
            return type(super().adapter())("dora")

    registry = make_registry(Lora, DoraKind, Full, Pytorch, Cpu, Hash)
    defaults = {"base_model": "./base", "dataset": "data.jsonl", "method": "lora"}
    key, _, value = changes.partition(": ")
    body = ", ".join(f"{name}: {text}" for name, text in ({key: value} | defaults | {key: value}).items())
    name = write(f"name: x\nfine_tuner: {{config: {{{body}}}}}")
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(error, match=match):
        run(registry, name)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_an_absent_device_is_a_hardware_error(project):
    with pytest.raises(HardwareError, match="no cuda device: no driver"):
        run(make_registry(Lora, Pytorch, Cpu, Cuda, Hash), project, sets=("hardware=cuda",))


def test_rows_are_held_out_when_evaluation_is_asked_for(registry, project):
    loaded = load(Request(project, sets=("training.eval_strategy=epoch",)), registry)
    planned = make_plan(loaded, registry)
    assert planned.splitter is not None
    assert "data_splitter" in {decision.subject for decision in planned.plan.decisions}
    assert make_plan(load(Request(project), registry), registry).splitter is None


def test_a_run_says_what_it_wrote_and_what_it_found_stays(registry, project, tmp_path):
    run(registry, project)
    assert manifest(tmp_path)["files"] == ["adapter_model.safetensors", "llamafarm"]
    (tmp_path / "output" / "rows.jsonl").write_text((tmp_path / "data.jsonl").read_text())
    (tmp_path / "output" / "mine.yaml").write_text(STRATEGY)
    over = ("overwrite_output_dir", True, "--overwrite")
    run(registry, "output/mine.yaml", over, ("dataset.path", "output/rows.jsonl", "--dataset"))
    assert (tmp_path / "output" / "rows.jsonl").read_text() == (tmp_path / "data.jsonl").read_text()
    assert (tmp_path / "output" / "llamafarm" / "strategy.yaml").read_text() == STRATEGY
    assert manifest(tmp_path)["files"] == ["adapter_model.safetensors", "llamafarm"]


def test_a_base_model_in_the_folder_that_is_replaced_is_refused(registry, project, tmp_path):
    run(registry, project, sets=("output_dir=base/../deep",))
    (tmp_path / "deep" / "config.json").write_text("{}")
    over = ("overwrite_output_dir", True, "--overwrite")
    with pytest.raises(
        RunDirectoryError, match=r"the base model deep is part of what --overwrite replaces.*LF-RUN-118"
    ):
        run(registry, project, over, ("base_model.huggingface_id", "deep", "--model"), sets=("output_dir=deep",))
    assert (tmp_path / "deep" / "adapter_model.safetensors").is_file()
