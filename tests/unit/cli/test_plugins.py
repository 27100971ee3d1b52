from __future__ import annotations

import json

from llamafarm.api import DataSplitter, NoConfig
from llamafarm.cli.plugins import describe, troubles
from llamafarm.core.distributions import Plugin
from llamafarm.core.registry import Failure, Registered, Registry


class Twice(DataSplitter[NoConfig]):
    name = "twice"

    def held_out(self, rows):
        return [False for _ in rows]


def test_list_shows_each_component_and_where_it_is_from(cli):
    ended = cli("plugins", "list")
    assert (ended.code, ended.err) == (0, "")
    rows = [line.split() for line in ended.out.splitlines()]
    assert rows[0] == ["FAMILY", "TYPE", "FROM", "VERSION", "PLUGIN"]
    assert ["method", "lora", "llamafarm", "0.1.0", "methods"] in rows
    assert ["data", "splitter", "hash", "llamafarm", "0.1.0", "splitters"] in rows
    assert ["fine-tuner", "pytorch", "llamafarm", "0.1.0", "tuners"] in rows


def test_list_as_json(cli):
    found = json.loads(cli("plugins", "list", "--json").out)
    assert found["failures"] == []
    assert found["clashes"] == []
    lora = {"family": "method", "type": "lora", "plugin": "methods", "distribution": "llamafarm", "version": "0.1.0"}
    assert lora in found["components"]


def test_a_disabled_plugin_is_gone(cli, monkeypatch):
    monkeypatch.setenv("LLAMAFARM_DISABLE_PLUGINS", "methods")
    assert "lora" not in cli("plugins").out


def test_failures_and_clashes_are_told():
    left, right = Plugin("left", "farm-left", "1.0"), Plugin("right", "farm-right", "1.1")
    registry = Registry(
        failures=(Failure(left, "ModuleNotFoundError: No module named 'x'"),),
        clashes={("data_splitter", "twice"): (Registered(Twice, left), Registered(Twice, right))},
    )
    assert troubles(describe(registry)) == [
        "farm-left 1.0 (plugin 'left') did not load: ModuleNotFoundError: No module named 'x'",
        (
            "data_splitter 'twice' is provided by farm-left (plugin 'left') and farm-right (plugin 'right'): "
            "neither can be used"
        ),
    ]
