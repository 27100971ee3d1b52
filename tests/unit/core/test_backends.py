"""Environments of fine-tuners: set up, found again, checked, removed."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llamafarm.api import Backend, backend_folder, installed
from llamafarm.core import backends as module
from llamafarm.core.backends import backends, check, compare, remove, require_backend, set_up
from llamafarm.core.registry import load_registry
from llamafarm.errors import PluginError, StrategyError

FAKE_UV = "import sys, venv\nif sys.argv[1] == 'venv': venv.create(sys.argv[-1])\n"
GOOD = "import json, sys; json.dump({'versions': {'toy': '1'}, 'facts': {'n': 2}}, open(sys.argv[1], 'w'))"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMAFARM_HOME", str(tmp_path / "home"))
    probe = tmp_path / "probe.py"
    probe.write_text(GOOD)
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# nothing\n")
    return Backend("toy", "a toy", requirements, probe, {"stubbed/__init__.py": "ANSWER = 42\n"})


def test_an_environment_that_is_there(toy):
    assert installed(toy) is None
    found = set_up(toy, Path(sys.executable), print)
    assert (found.versions, found.facts, found.owned) == ({"toy": "1"}, {"n": 2}, False)
    assert installed(toy) == found == check(toy)
    assert remove(toy)
    assert Path(sys.executable).is_file()
    assert installed(toy) is None
    assert not remove(toy)


def test_one_of_our_own_has_the_stubs_and_nothing_of_ours(toy, monkeypatch):
    monkeypatch.setattr(module, "_put_torch", lambda *_: None)  # hundreds of files; tests/unit/core/test_reuse.py
    toy.probe.write_text(
        "import importlib.util as u, stubbed; assert stubbed.ANSWER == 42; assert u.find_spec('llamafarm') is None\n"
        + GOOD
    )
    said = []
    found = set_up(toy, None, said.append)
    assert found.owned
    assert found.python.is_relative_to(backend_folder("toy"))
    assert len(said) == 3


def test_a_failed_installation_says_why_and_leaves_no_backend(toy, monkeypatch):
    monkeypatch.setattr(module, "_put_torch", lambda *_: None)  # hundreds of files; tests/unit/core/test_reuse.py
    toy.requirements.write_text("./no-such-thing.whl\n")
    with pytest.raises(PluginError, match=r"setup.log: the set-up failed .*no-such-thing.*LF-PLUGIN-072"):
        set_up(toy, None, print)
    assert installed(toy) is None
    assert not (backend_folder("toy") / "venv").exists()


def test_no_interpreter(toy):
    with pytest.raises(PluginError, match=r"no such interpreter: nowhere.*LF-PLUGIN-072"):
        set_up(toy, Path("nowhere"), print)


def test_a_program_that_does_not_work(toy):
    set_up(toy, Path(sys.executable), print)
    toy.probe.write_text("import no_such_module")
    with pytest.raises(PluginError, match=r"No module named 'no_such_module'.*--overwrite.*LF-PLUGIN-073"):
        check(toy)


def test_nothing_to_compare_it_with(toy):
    state = set_up(toy, Path(sys.executable), print)
    with pytest.raises(StrategyError, match=r"toy has no counterpart.*LF-TRAIN-100"):
        compare(toy, state, load_registry())


def test_a_python_that_is_too_new_for_it(toy):
    old = replace(toy, python_below=sys.version_info[:2])
    with pytest.raises(StrategyError, match=r"needs a Python below .*--python.*LF-TRAIN-101"):
        set_up(old, None, print)
    assert set_up(old, Path(sys.executable), print).versions == {"toy": "1"}


def test_uv_where_there_is_one(toy, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_put_torch", lambda *_: None)
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(f"#!{sys.executable}\n" + FAKE_UV)  # not every machine has one
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(uv.parent), prepend=os.pathsep)
    found = set_up(toy, None, print)
    log = (backend_folder("toy") / "setup.log").read_text()
    assert f"$ {uv} venv --python {sys.executable} {found.python.parents[1]}" in log
    assert f"$ {uv} pip install --python {found.python} --no-deps -r {toy.requirements}" in log


def test_no_room(toy):
    big = Backend(toy.name, toy.summary, toy.requirements, toy.probe, disk_bytes=1 << 60)
    with pytest.raises(PluginError, match="LF-PLUGIN-074"):
        set_up(big, None, print)


def test_it_is_not_set_up(toy):
    with pytest.raises(PluginError, match=r"llamafarm backends setup toy.*LF-PLUGIN-070"):
        check(toy)


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"python": "/none", "owned": True})])
def test_a_damaged_marker_is_no_backend(toy, content):
    backend_folder("toy").mkdir(parents=True)
    (backend_folder("toy") / "backend.json").write_text(content)
    assert installed(toy) is None


def test_those_of_the_installed_fine_tuners():
    registry = load_registry()
    assert list(backends(registry)) == ["llamafactory", "llamafactory-ppo"]
    assert require_backend(registry, "llamafactory").requirements.is_file()
    with pytest.raises(PluginError, match=r"did you mean 'llamafactory'\?.*LF-PLUGIN-071"):
        require_backend(registry, "lamafactory")
