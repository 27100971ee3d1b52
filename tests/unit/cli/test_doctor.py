from __future__ import annotations

import json
from importlib import metadata

import pytest

from llamafarm.api import HardwareProfile, NoConfig
from llamafarm.cli.doctor import examine
from llamafarm.core.registry import Plugin, Registered, Registry


def test_a_machine_with_everything_is_told_what_to_do_next(cli):
    ended = cli("doctor")
    assert (ended.code, ended.err) == (0, "")
    assert f"✓ torch            {metadata.version('torch')}" in ended.out
    assert "no token" in ended.out
    assert ended.out.splitlines()[-1].startswith("Nothing is missing; training uses ")


def test_the_token_is_never_shown(cli, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canarycanarycanary")
    for ended in (cli("doctor"), cli("doctor", "--json")):
        assert "canary" not in ended.out + ended.err
    assert "token found" in cli("doctor").out
    assert json.loads(cli("doctor", "--json").out)["hub_token"] is True


def test_what_is_missing_comes_with_one_command(cli, monkeypatch):
    real = metadata.version

    def version(name):
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "torch" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    ended = cli("doctor")
    assert ended.code == 5
    assert "✗ peft             not installed" in ended.out
    assert "✗ torch            1.0, needed: torch>=" in ended.out
    command = ended.out.splitlines()[-1]
    assert " -m pip install 'peft>=" in command
    assert "'torch>=" in command
    assert json.loads(cli("doctor", "--json").out)["install"] == command.strip()


def test_an_optional_library_is_no_lack(cli, monkeypatch):
    real = metadata.version

    def version(name):
        if name == "bitsandbytes":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    ended = cli("doctor")
    assert ended.code == 0
    assert "· bitsandbytes     not installed  (optional: pip install 'llamafarm[qlora]')" in ended.out


def test_a_profile_that_breaks_is_told_and_stops_nothing():
    class Broken(HardwareProfile[NoConfig]):
        name = "broken"

        def probe(self):
            raise RuntimeError("no driver")

    registry = Registry(components={"hardware": {"broken": Registered(Broken, Plugin("p", "farm-p", "1"))}})
    (device,) = examine(registry)["devices"]
    assert device == {"type": "broken", "available": False, "reason": "probe failed: no driver"}


@pytest.mark.parametrize("key", ["python", "platform", "libraries", "devices", "plugins", "disk_free_bytes", "missing"])
def test_json_has_every_part(cli, key):
    assert key in json.loads(cli("doctor", "--json").out)
