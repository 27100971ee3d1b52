from __future__ import annotations

import json


def test_list_says_what_to_do(cli):
    ended = cli("backends")
    assert ended.code == 0
    assert ended.out.splitlines()[1].split() == [
        "llamafactory",
        "not",
        "set",
        "up",
        "llamafarm",
        "backends",
        "setup",
        "llamafactory",
    ]
    found = json.loads(cli("backends", "list", "--json").out)
    assert [(one["name"], one["installed"]) for one in found] == [("llamafactory", False), ("llamafactory-ppo", False)]


def test_check_of_one_that_is_absent(cli):
    ended = cli("backends", "check")
    assert ended.code == 5
    assert "llamafarm backends setup llamafactory" in ended.err
    assert "LF-PLUGIN-070" in ended.err


def test_setup_with_an_environment_that_lacks_it(cli, tmp_path):
    import sys

    ended = cli("backends", "setup", "llamafactory", "--python", sys.executable)
    assert ended.code == 5
    assert "No module named 'llamafactory'" in ended.err
    assert "LF-PLUGIN-073" in ended.err


def test_remove_of_one_that_is_absent(cli):
    assert cli("backends", "remove", "llamafactory").out == "llamafactory was not set up\n"
