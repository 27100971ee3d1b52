"""A plugin of somebody else that breaks: it is named, with its line, and matters to nobody who did not ask for it."""

from __future__ import annotations

import json
import sys

import pytest

from llamafarm.errors import ExitCode

PLUGIN = """
from llamafarm.api import (
    AdapterSpec, DataSplitter, FineTuner, FineTunerConfig, HardwareProfile, Method, NoConfig, hookimpl,
)


class Splitter(DataSplitter[NoConfig]):
    name = "broken"

    def held_out(self, rows):
        return [row.nothing for row in rows]  # splitter


class Broken(Method[NoConfig]):
    name = "broken"

    def adapter(self):
        return AdapterSpec("lora", {})

    def apply(self, model, run):
        import torch

        return torch.zeros(3) @ torch.zeros(4)  # method


class Tuner(FineTuner[FineTunerConfig]):
    name = "broken"
    adapter_kinds = frozenset({"lora"})

    def fit(self, plan, data, run):
        run.emit("log", step=1, steps=3, loss=1.0)
        raise ZeroDivisionError("one line\\nand another")  # tuner


class Checked(Tuner):
    name = "checked"

    def check(self, plan):
        raise LookupError("no such thing")  # check


class Profile(HardwareProfile[NoConfig]):
    name = "broken"
    priority = 1000

    def probe(self):
        raise OSError("no driver")  # hardware


@hookimpl
def llamafarm_data_splitters():
    return [Splitter]


@hookimpl
def llamafarm_methods():
    return [Broken]


@hookimpl
def llamafarm_fine_tuners():
    return [Tuner, Checked]


@hookimpl
def llamafarm_hardware_profiles():
    return [Profile]
"""


@pytest.fixture
def plugin(tmp_path_factory, monkeypatch):
    """A distribution of somebody else, installed as pip would; its module."""
    folder = tmp_path_factory.mktemp("site")
    described = folder / "llamafarm_broken-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: llamafarm-broken\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[llamafarm]\nbroken = their_broken_module\n")
    (folder / "their_broken_module.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "their_broken_module", raising=False)
    return folder / "their_broken_module.py"


@pytest.fixture
def arguments(tiny_dataset):
    return ("train", "--model", "builtin:tiny", "--dataset", str(tiny_dataset), "--max-steps", "1", "--output", "out")


@pytest.mark.parametrize(
    ("choice", "mark", "what"),
    [
        (("data_splitter=broken", "hardware=cpu"), "splitter", "AttributeError: 'Row' object has no attribute"),
        (("method=broken", "hardware=cpu"), "method", "RuntimeError: "),
        (("fine_tuner=broken", "hardware=cpu"), "tuner", "ZeroDivisionError: one line; report: "),
        (("fine_tuner=checked", "hardware=cpu"), "check", "LookupError: no such thing"),
        (("hardware=broken",), "hardware", "OSError: no driver"),
    ],
)
def test_what_breaks_in_a_plugin_is_said_to_be_its_own(cli, plugin, arguments, tmp_path, choice, mark, what):
    ended = cli(*arguments, "--quiet", *(part for one in choice for part in ("--set", one)))
    line = next(number for number, text in enumerate(PLUGIN.splitlines(), 1) if text.endswith(f"# {mark}"))
    assert ended.code == ExitCode.PLUGIN
    assert f"{plugin}:{line}: llamafarm-broken 1.0 (plugin 'broken') failed: {what}" in ended.err
    assert "[LF-PLUGIN-081]" in ended.err
    (report,) = (tmp_path / ".state").rglob("crash-*.txt")
    assert "Traceback (most recent call last)" in report.read_text()


def test_the_run_knows_it_too(cli, plugin, arguments, tmp_path):
    cli(*arguments, "--set", "fine_tuner=broken", "--set", "hardware=cpu")
    own = tmp_path / "out" / "llamafarm"
    manifest = json.loads((own / "manifest.json").read_text())
    assert (manifest["status"], manifest["exit_code"]) == ("failed", ExitCode.PLUGIN)
    log = (own / "run.log").read_text()
    assert "Traceback (most recent call last)" in log
    assert "ZeroDivisionError: one line" in log


def test_a_profile_that_breaks_does_not_matter_to_who_did_not_ask_for_it(cli, plugin, arguments):
    ended = cli(*arguments, "--dry-run")
    assert ended.code == ExitCode.OK
    assert "hardware profile 'broken': left out, llamafarm-broken 1.0 (plugin 'broken') failed: OSError" in ended.err
    assert "lora with pytorch on cpu" in ended.out
