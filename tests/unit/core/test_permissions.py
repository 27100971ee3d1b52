"""What a strategy may ask for by itself, and what only somebody at the command line may."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamafarm.core.load import load
from llamafarm.core.permissions import upload_refusal
from llamafarm.core.request import Flag, Request
from llamafarm.errors import SecurityError

GIVEN = {"base_model": {"huggingface_id": "builtin:tiny"}, "dataset": {"path": "rows.jsonl"}}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Beside the working folder, with a folder of settings."""
    (tmp_path / "home" / ".config").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def work(tmp_path, monkeypatch, home):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def strategy(config=None, **top):
    """A strategy in the working folder, and its name; each value on a line of its own."""
    given = GIVEN | dict(config or {})
    text = json.dumps({"name": "x", "fine_tuner": {"type": "pytorch", "config": given}} | top, indent=1)  # JSON is YAML
    Path("s.yaml").write_text(text, encoding="utf-8")
    return "s.yaml"


def refused(registry, name, *, flags=(), sets=()):
    with pytest.raises(SecurityError) as caught:
        load(Request(name, flags, sets), registry)
    return caught.value.problems


def reason(registry, value, key="output_dir"):
    """Why a strategy may not write there; empty if it may."""
    config = {"output_dir": value} if key == "output_dir" else {"base_model": {"cache_dir": value}}
    name = strategy(config) if key != "export" else strategy(export={"to": "adapter", "output_dir": value})
    return refusal_of(registry, name, value)


def refusal_of(registry, name, value):
    try:
        load(Request(name), registry)
    except SecurityError as error:
        (problem,) = error.problems
        assert problem.id == "LF-SECURITY-007"
        assert f"{Path(name).name}:" in problem.where
        assert problem.hint == "choose a folder for it on the command line: --output FOLDER, or --set"
        return problem.message.partition(f" is {value}: ")[2]
    return ""


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize(
    "value",
    ["out", "deep/er/out", "./out", "a/../out", ".cache/x", "a/.cache", "/var/tmp/x", "/var/folders/x", "/dev/shm/x"],
)
def test_a_strategy_writes_below_the_working_folder_and_where_scratch_goes(registry, value):
    assert reason(registry, value) == ""


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("key", ["output_dir", "cache_dir", "export"])
@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("../x", "it leads out of the working folder"),
        ("link/x", "it leads out of the working folder"),
        (".", "this is the working folder itself"),
        ("~/x", "~ is not replaced in strategies"),
        (".hidden", "hidden folders hold configuration"),
        ("a/.git/hooks", "hidden folders hold configuration"),
        ("/", "a home folder, or one above it, is no place for a run"),
        ("/etc/x", "the system's folders hold programs and their configuration"),
        ("/usr", "the system's folders hold programs and their configuration"),
        ("/var/x", "the system's folders hold programs and their configuration"),
    ],
)
def test_a_strategy_writes_nowhere_else(registry, tmp_path, key, value, why):
    Path("link").symlink_to(tmp_path)
    assert reason(registry, value, key) == why


def test_home_folders_and_what_is_in_them(registry, work, home, tmp_path):
    assert reason(registry, str(home)) == "a home folder, or one above it, is no place for a run"
    assert reason(registry, str(tmp_path)) == "a home folder, or one above it, is no place for a run"
    assert reason(registry, str(home / ".config" / "x")) == "hidden folders hold configuration"
    assert reason(registry, str(home / "runs")) == ""
    assert reason(registry, str(tmp_path / "elsewhere" / "run")) == "", "a path from the root is written on purpose"
    assert reason(registry, str(work / "run")) == ""


def test_where_somebody_works_already_may_be_anywhere(registry, work, home, monkeypatch):
    """Hidden above the working folder, or in a folder of the system: what is below it is theirs."""
    (home / ".config" / "work").mkdir()
    monkeypatch.chdir(home / ".config" / "work")
    assert reason(registry, "out") == ""
    from llamafarm.core import permissions

    monkeypatch.setattr(permissions, "_SYSTEM", (work, home / ".config"))
    assert reason(registry, "out") == ""
    monkeypatch.setattr(permissions, "_SYSTEM", (home,))
    assert reason(registry, str(home / "x")) == "the system's folders hold programs and their configuration"


@pytest.mark.usefixtures("work")
def test_a_link_that_leads_to_itself_leads_nowhere(registry):
    """Nothing can be written there, as the disk will say."""
    Path("loop").symlink_to("loop")
    assert reason(registry, "loop/x") == ""


@pytest.mark.usefixtures("home")
def test_from_the_root_everything_is_below_the_working_folder_and_most_of_it_refused(registry, tmp_path, monkeypatch):
    """Where a container begins."""
    name = str(tmp_path / "s.yaml")
    monkeypatch.chdir("/")
    for value, why in {
        "/etc/x": "the system's folders hold programs and their configuration",
        "usr/x": "the system's folders hold programs and their configuration",
        "home/somebody/.ssh": "hidden folders hold configuration",
        "/": "this is the working folder itself",
        "out": "",
        "var/tmp/x": "",
    }.items():
        text = {"name": "x", "fine_tuner": {"type": "pytorch", "config": GIVEN | {"output_dir": value}}}
        Path(name).write_text(json.dumps(text), encoding="utf-8")
        assert refusal_of(registry, name, value) == why, value


def test_a_run_that_is_there_was_put_there_by_somebody(registry, work, tmp_path):
    (tmp_path / "old" / "llamafarm").mkdir(parents=True)
    assert reason(registry, "../old") == "it leads out of the working folder"
    (tmp_path / "old" / "llamafarm" / "manifest.json").write_text("{}")
    assert reason(registry, "../old") == ""


def test_who_types_a_place_has_chosen_it(registry, work, monkeypatch):
    name = strategy({"output_dir": "../x"})
    for flags, sets in (((Flag("output_dir", "../y", "--output"),), ()), ((), ("output_dir=../y",))):
        assert load(Request(name, flags, sets), registry).tuner_config.output_dir == "../y"
    monkeypatch.setenv("LLAMAFARM_BASE_MODEL__CACHE_DIR", "../y")
    assert load(Request(strategy()), registry).tuner_config.base_model.cache_dir == "../y"


def test_what_is_only_read_may_lie_anywhere(registry, work):
    strategy({"dataset": {"path": "../rows.jsonl", "eval_path": "/etc/hosts"}, "base_model": "../model"})
    load(Request("s.yaml"), registry)


PLACES = {
    "base_model.huggingface_id": lambda text: strategy({"base_model": {"huggingface_id": text}}),
    "base_model.cache_dir": lambda text: strategy(
        {"base_model": {"huggingface_id": "builtin:tiny", "cache_dir": text}}
    ),
    "output_dir": lambda text: strategy({"output_dir": text}),
    "dataset.path": lambda text: strategy({"dataset": {"path": text}}),
    "dataset.eval_path": lambda text: strategy({"dataset": {"path": "rows.jsonl", "eval_path": text}}),
    "dataset.dataset_dir": lambda text: strategy({"dataset": {"path": "rows.jsonl", "dataset_dir": text}}),
    "dataset.sources.1.path": lambda text: strategy({"dataset": {"sources": [{"path": "a.jsonl"}, {"path": text}]}}),
    "dataset.sources.0.dataset_dir": lambda text: strategy(
        {"dataset": {"sources": [{"path": "a.jsonl", "dataset_dir": text}]}}
    ),
    "export.output_dir": lambda text: strategy(export={"to": "adapter", "output_dir": text}),
}


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("key", PLACES)
def test_what_is_no_path_is_refused_wherever_one_is_given(registry, key):
    (problem,) = refused(registry, PLACES[key]("x" * 256))
    assert (problem.id, problem.message) == ("LF-SECURITY-008", f"{key} is longer than any path: 256 characters")
    assert problem.where.startswith("s.yaml:")


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("a\x1fb", "holds a control character: 'a\\x1fb'"),
        ("a\x7fb", "holds a control character: 'a\\x7fb'"),
        ("a\0" + "b" * 100, f"holds a control character: 'a\\x00{'b' * 58}'"),
        ("a\ud800" + "b" * 100, f"holds half a character: 'a\\ud800{'b' * 58}'"),
        ("x/" + "ü" * 128, "is longer than any path: 130 characters"),
        ("x/" * 2049, "is longer than any path: 4,098 characters"),
        ("x/" * 2048 + "x", "is longer than any path: 4,097 characters"),
    ],
)
def test_what_is_no_path(registry, value, why):
    (problem,) = refused(registry, strategy(), flags=(Flag("output_dir", value, "--output"),))
    assert (problem.id, problem.message, problem.where) == ("LF-SECURITY-008", f"output_dir {why}", "--output")


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("value", ["a b", "a~b", "x" * 255, "ü" * 127, "x/" * 2048, "C:\\x", "%2e%2e"])
def test_odd_paths_are_paths(registry, value):
    loaded = load(Request(strategy(), (Flag("dataset.path", value, "--dataset"),)), registry)
    assert loaded.tuner_config.dataset.path == value


@pytest.mark.usefixtures("work")
def test_code_of_a_model_runs_by_its_flag_alone(registry, monkeypatch):
    given = {"base_model": {"huggingface_id": "builtin:tiny", "trust_remote_code": True}}
    name = strategy(given)
    line = next(at for at, text in enumerate(Path(name).read_text().splitlines(), 1) if "trust_remote_code" in text)
    (problem,) = refused(registry, name)
    assert problem.id == "LF-SECURITY-002"
    assert problem.where.startswith(f"s.yaml:{line}:")
    (problem,) = refused(registry, strategy(), sets=("base_model.trust_remote_code=true",))
    assert problem.id == "LF-SECURITY-002"
    flag = Flag("base_model.trust_remote_code", True, "--trust-remote-code")
    for name in (strategy(), strategy(given)):
        assert load(Request(name, (flag,)), registry).tuner_config.base_model.trust_remote_code
    off = strategy({"base_model": {"huggingface_id": "builtin:tiny", "trust_remote_code": False}})
    load(Request(off), registry)
    monkeypatch.setenv("LLAMAFARM_BASE_MODEL__TRUST_REMOTE_CODE", "true")
    assert refused(registry, strategy())[0].id == "LF-SECURITY-002"


@pytest.mark.usefixtures("work")
def test_all_that_is_refused_is_said_at_once(registry):
    name = strategy({"base_model": {"huggingface_id": "a\nb", "trust_remote_code": True}, "output_dir": "../x"})
    assert [item.id for item in refused(registry, name)] == ["LF-SECURITY-002", "LF-SECURITY-008", "LF-SECURITY-007"]


@pytest.mark.usefixtures("work")
def test_uploading_needs_a_word_of_whoever_runs_it(registry):
    name = strategy({"training": {"push_to_hub": True, "hub_model_id": "a/b"}})
    error = upload_refusal(load(Request(name), registry))
    assert error is not None
    (problem,) = error.problems
    assert (problem.id, problem.message) == ("LF-SECURITY-010", "the strategy would upload the result to a/b")
    assert problem.where.startswith("s.yaml:")
    assert upload_refusal(load(Request(name, (Flag("training.push_to_hub", True, "--push-to-hub"),)), registry)) is None
    assert upload_refusal(load(Request(name, (), ("training.push_to_hub=true",)), registry)) is None
    assert upload_refusal(load(Request(strategy()), registry)) is None
    assert upload_refusal(load(Request(name, (), ("training.push_to_hub=false",)), registry)) is None
