from __future__ import annotations

import errno
import json
import os

import pytest
from core_test_components import Cpu, Hash, Lora, Pytorch
from core_test_components import registry as make_registry

import llamafarm.core.run as run_module
from llamafarm.core.load import load
from llamafarm.core.lock import LOCK, OwnerLock, live_owner, this_process
from llamafarm.core.place import OldPlace
from llamafarm.core.plan import make_plan
from llamafarm.core.record import OWN, manifest_of, settings_of
from llamafarm.core.request import Request
from llamafarm.core.resume import asked_for, checked, find_run
from llamafarm.core.run import train
from llamafarm.errors import DiskError, RunDirectoryError, StrategyError

STRATEGY = "name: try\nfine_tuner: {config: {base_model: ./base, dataset: data.jsonl}}\n"


class Stopped(Pytorch):
    """Takes a step, and is then interrupted, unless it is resumed."""

    resumes = True

    def fit(self, plan, data, run):
        result = super().fit(plan, data, run)
        if plan.resume is not None:
            run.emit("resumed", step=1, exact=True, reasons=[])
        run.emit("log", step=1 if plan.resume is None else 2, loss=1.0)
        if plan.resume is None:
            run.emit("log", step=2, loss=9.0)
            raise KeyboardInterrupt
        return result


@pytest.fixture
def registry():
    return make_registry(Lora, Stopped, Cpu, Hash)


@pytest.fixture
def project(write, tmp_path):
    write("{}", "base/config.json")
    write('{"instruction": "a", "output": "b"}\n{"instruction": "c", "output": "d"}\n', "data.jsonl")
    return write(STRATEGY)


def run(registry, name, resume=None, sets=()):
    loaded = load(Request(name, sets=sets), registry)
    point = checked(resume, loaded, registry).point if resume else None
    return train(loaded, make_plan(loaded, registry, point), registry, lambda event: None)


@pytest.fixture
def interrupted(registry, project, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(registry, project)
    return tmp_path / "output"


def test_a_run_goes_on_where_it_was_under_its_own_name(registry, interrupted):
    before = manifest_of(interrupted)
    assert before["status"] == "interrupted"
    found = find_run("output")
    outcome = run(registry, found.strategy, found)
    after = manifest_of(interrupted)
    assert outcome.run_id == before["run_id"] == after["run_id"]
    assert (after["status"], after["started"]) == ("completed", before["started"])
    assert "error" not in after
    assert len(after["resumed"]) == 1
    assert (interrupted / OWN / "strategy.yaml").read_text() == STRATEGY


@pytest.mark.parametrize("full", [False, True])
def test_events_of_steps_that_are_taken_again_are_dropped_and_none_that_follow_is_lost(
    registry, interrupted, monkeypatch, full
):
    found, write = find_run("output"), run_module.write_atomically

    def refused(path, text):
        if full and path.name == "events.jsonl":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        write(path, text)

    monkeypatch.setattr(run_module, "write_atomically", refused)
    run(registry, found.strategy, found)
    events = [json.loads(line) for line in (interrupted / OWN / "events.jsonl").read_text().splitlines()]
    second = [event["loss"] for event in events if event["type"] == "log" and event["step"] == 2]
    assert second == ([9.0, 1.0] if full else [1.0])
    assert [event["type"] for event in events if event["type"] in ("resumed", "result")] == ["resumed", "result"]


def test_without_a_name_the_last_run_is_meant(registry, project, tmp_path, interrupted):
    later = tmp_path / "deep" / "er" / OWN
    later.mkdir(parents=True)
    (later / "manifest.json").write_text(json.dumps({"started": "2999-01-01T00:00:00+00:00"}))
    assert find_run("last").folder.resolve() == (tmp_path / "deep" / "er").resolve()


def test_no_run_to_resume(write, tmp_path):
    write("{}", "base/config.json")
    (tmp_path / "loop").symlink_to("loop")
    for target in ("last", "base", "nowhere", "loop", "loop/checkpoint-1"):
        with pytest.raises(RunDirectoryError, match="LF-RUN-011"):
            find_run(target)


def test_a_checkpoint_stands_for_its_run(interrupted):
    (interrupted / "checkpoint-3").mkdir()
    found = find_run("output/checkpoint-3")
    assert found.folder.resolve() == interrupted.resolve()
    assert found.point.checkpoint.name == "checkpoint-3"
    with pytest.raises(RunDirectoryError, match=r"it has: checkpoint-3.*LF-RUN-012"):
        find_run("output/checkpoint-4")


def test_the_same_command_begins_or_goes_on(registry, project, tmp_path):
    loaded = load(Request(project, sets=("training.resume_from_checkpoint=true",)), registry)
    assert asked_for(loaded) is None
    with pytest.raises(KeyboardInterrupt):
        run(registry, project)
    found = asked_for(loaded)
    assert found.folder.resolve() == (tmp_path / "output").resolve()
    elsewhere = load(Request(project, sets=("training.resume_from_checkpoint=output", "output_dir=b")), registry)
    with pytest.raises(RunDirectoryError, match="LF-RUN-014"):
        asked_for(elsewhere)


def test_the_contract_is_kept(registry, project, interrupted):
    found = find_run("output")
    with pytest.raises(StrategyError, match=r"training\.seed was 42 and is 7.*LF-TRAIN-053"):
        run(registry, project, found, ("training.seed=7",))
    with pytest.raises(StrategyError, match=r"learning_rate was .* and is 0\.5.*LF-TRAIN-054"):
        run(registry, project, found, ("training.learning_rate=0.5",))
    run(registry, project, find_run("output", allow_changes=True), ("training.learning_rate=0.5",))
    assert settings_of(interrupted)["training.learning_rate"] == 0.5
    with pytest.raises(RunDirectoryError, match="LF-RUN-013"):
        run(registry, found.strategy, find_run("output"))


@pytest.mark.parametrize("damage", ["", '{"training.seed": 42', None])
def test_without_the_record_of_its_settings_a_run_goes_on_only_if_told_to(registry, interrupted, damage):
    record = interrupted / OWN / "config.json"
    whole = json.loads(record.read_text())
    record.unlink() if damage is None else record.write_text(damage)
    found = find_run("output")
    with pytest.raises(RunDirectoryError, match=r"config.json: .* cannot be told; add --allow-changes.*LF-RUN-115"):
        run(registry, found.strategy, found)
    told = find_run("output", allow_changes=True)
    run(registry, told.strategy, told)
    assert settings_of(interrupted) == whole


@pytest.mark.parametrize("damage", ["", "{", None])
def test_a_run_whose_manifest_is_lost_is_still_a_run(registry, project, interrupted, damage):
    manifest = interrupted / OWN / "manifest.json"
    manifest.unlink() if damage is None else manifest.write_text(damage)
    with pytest.raises(RunDirectoryError, match="LF-RUN-011"):
        find_run("output")  # nothing was trained
    (interrupted / "checkpoint-1").mkdir()
    (interrupted / "checkpoint-1" / "llamafarm_checkpoint.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match=r"llamafarm train --resume output.*LF-RUN-116"):
        run(registry, project, sets=("overwrite_output_dir=true",))
    found = find_run("output")
    loaded = load(Request(found.strategy), registry)
    assert "versions of its plugins" in str(checked(found, loaded, registry).point.changes)
    assert asked_for(load(Request(project, sets=("training.resume_from_checkpoint=true",)), registry)) is not None
    run(registry, found.strategy, found)
    assert manifest_of(interrupted)["status"] == "completed"


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_a_damaged_line_of_events_costs_no_more_than_that(registry, interrupted, at):
    path, found = interrupted / OWN / "events.jsonl", find_run("output")
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 2))] ^= 0x80
    path.write_bytes(content)
    run(registry, found.strategy, found)
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["type"] for event in events if event["type"] in ("resumed", "result")] == ["resumed", "result"]
    assert len([event for event in events if event["type"] == "log"]) >= 1


def test_a_run_whose_strategy_is_lost_goes_on_with_the_one_it_was_made_from(registry, project, interrupted):
    (interrupted / OWN / "resolved.yaml").unlink()
    found = find_run("output")
    with pytest.raises(RunDirectoryError, match=r"resolved.yaml: .* is lost; give it by --strategy.*LF-RUN-117"):
        found.strategy  # noqa: B018  # that is what raises
    run(registry, project, found)
    assert manifest_of(interrupted)["status"] == "completed"


def test_a_run_of_another_user_is_said_to_be_one(registry, project, interrupted, monkeypatch):
    (interrupted / OWN).chmod(0)
    if os.geteuid() == 0:  # who may do everything
        monkeypatch.setattr("llamafarm.core.record.os.access", lambda *_: False)
        monkeypatch.setattr("llamafarm.core.output.manifest_of", lambda _: None)
    try:
        for attempt in (lambda: find_run("output"), lambda: run(registry, project)):
            with pytest.raises(DiskError, match=r"output/llamafarm: .* not for this user.*LF-DISK-031"):
                attempt()
    finally:
        (interrupted / OWN).chmod(0o700)


def test_a_disk_that_is_full_when_a_run_begins_is_said_with_its_place(registry, project, tmp_path, monkeypatch):
    def refused(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_module, "write_atomically", refused)
    with pytest.raises(DiskError, match=r"output: cannot write .*No space left.*free space.*LF-DISK-022"):
        run(registry, project)
    assert not (tmp_path / "output").exists()


def test_a_fine_tuner_that_cannot_resume_says_so(project, interrupted):
    registry = make_registry(Lora, Pytorch, Cpu, Hash)
    with pytest.raises(StrategyError, match=r"'pytorch' cannot resume.*LF-TRAIN-055"):
        run(registry, project, find_run("output"))


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(DiskError, match="LF-DISK-022"), OldPlace(tmp_path / "gone", "run"):
        pass


def test_a_lock_is_taken_over_from_the_dead_only(tmp_path):
    (tmp_path / OWN).mkdir()
    path = tmp_path / OWN / LOCK
    with OwnerLock(tmp_path, "one") as held:
        assert held.stale is None
        assert live_owner(tmp_path)["pid"] == os.getpid()
        with pytest.raises(RunDirectoryError, match=rf"one is writing here \(process {os.getpid()} on "):
            OwnerLock(tmp_path, "two").__enter__()
    assert live_owner(tmp_path) is None
    path.write_text(json.dumps(this_process() | {"pid": 1, "run_id": "killed"}))  # the system freed its lock
    assert live_owner(tmp_path) is None
    with OwnerLock(tmp_path, "two") as held:
        assert held.stale["run_id"] == "killed"
