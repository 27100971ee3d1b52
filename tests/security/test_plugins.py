"""Distributions whose metadata is hostile: they are read for every command, before anybody asked for a plugin.

A plugin's module is code and runs when it is installed; its metadata is data, and one that is broken concerns no other.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

MODULE = "import os\nopen(os.environ['PWNED'], 'w').close()\n"
GOOD = "Metadata-Version: 2.1\nName: evil\nVersion: 1\n"
ENTRY = "[llamafarm]\nevil = evil_plugin\n"
NEWER = "Requires-Dist: llamafarm>=99\n"
"""Read before anything is imported: the module must not run."""

DISTRIBUTIONS: dict[str, tuple[str | bytes, str | bytes]] = {
    "for another version": (GOOD + NEWER, ENTRY),
    "for another version in other letters": (GOOD + "Requires-Dist: LlamaFarm (>=99)\n", ENTRY),
    "a requirement that is none": (GOOD + "Requires-Dist: llamafarm @@@ ;;\n", ENTRY),
    "a requirement that is none, then one": (GOOD + "Requires-Dist: llamafarm[\n" + NEWER, ENTRY),
    "a name that drives the terminal": (GOOD.replace("evil", "e\x1b[2J\x1b]0;owned\x07") + NEWER, ENTRY),
    "a version that drives the terminal": (GOOD.replace("1\n", "1\x1b[31m\n") + NEWER, ENTRY),
    "no name": ("Metadata-Version: 2.1\nVersion: 1\n" + NEWER, ENTRY),
    "no version": ("Metadata-Version: 2.1\nName: evil\n" + NEWER, ENTRY),
    "nothing": ("", "[llamafarm]\nevil = evil_gone\n"),
    "not UTF-8": (b"Name: \xff\xfe\nVersion: 1\nRequires-Dist: llamafarm>=99\n", ENTRY),
    "a giant name": (GOOD.replace("evil", "e" * 100_000) + NEWER, ENTRY),
    "an entry that drives the terminal": (GOOD + NEWER, "[llamafarm]\ne\x1b[2Jvil = evil_plugin\n"),
    "an entry without a module": (GOOD, "[llamafarm]\nevil =\n"),
    "an entry that is no name": (GOOD, "[llamafarm]\nevil = ../../evil plugin !\n"),
    "an entry with code": (GOOD, "[llamafarm]\nevil = os:system('touch PWNED')\n"),
    "entries that are none": (GOOD, b"\xff\xfe[[[[\n===\n"),
    "a module that is not there": (GOOD, "[llamafarm]\nevil = evil_gone.deeper:thing\n"),
    "a module of the library": (GOOD, "[llamafarm]\nevil = antigravity_gone\nother = json\n"),
    "a thousand entries": (GOOD + NEWER, "[llamafarm]\n" + "".join(f"e{n} = evil_plugin\n" for n in range(1000))),
    "our own name": (GOOD.replace("evil", "llamafarm").replace("1\n", "99\n"), "[llamafarm]\nevil = evil_gone\n"),
}


@pytest.fixture
def install(cage, monkeypatch) -> Callable[[str], Path]:
    def write(name: str) -> Path:
        site, (metadata, entries) = cage.root / "site", DISTRIBUTIONS[name]
        folder = site / "evil-1.dist-info"
        folder.mkdir(parents=True)
        for file, content in (("METADATA", metadata), ("entry_points.txt", entries)):
            (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
        (site / "evil_plugin.py").write_text(MODULE)
        sys.modules.pop("evil_plugin", None)
        monkeypatch.syspath_prepend(str(site))
        return site

    return write


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_metadata_is_data_and_concerns_nobody_else(cage, install, strategy, name: str) -> None:
    install(name)
    strategy()
    for command in (["plugins", "list"], ["validate", "strategy.yaml"], ["train", "-s", "strategy.yaml", "--dry-run"]):
        assert cage.run(*command) == 0, cage.shown
        assert not [word for word in ("\x1b[2J", "\x1b]0;", "\x1b[31m1", "\x07") if word in cage.shown]
    assert cage.run("plugins", "list", "--json") == 0
    kinds = {
        one["type"] for one in json.loads(cage.shown[cage.shown.index("{") : cage.shown.rindex("}") + 1])["components"]
    }
    assert {"pytorch", "lora"} <= kinds


def test_what_is_switched_off_is_not_imported(cage, install, monkeypatch) -> None:
    monkeypatch.setitem(DISTRIBUTIONS, "good", (GOOD, ENTRY))
    install("good")
    monkeypatch.setenv("LLAMAFARM_DISABLE_PLUGINS", "evil")
    assert cage.run("plugins", "list") == 0


def test_else_it_is(cage, install, monkeypatch) -> None:
    """The other side: the metadata above would run the module, were it good."""
    monkeypatch.setitem(DISTRIBUTIONS, "good", (GOOD, ENTRY))
    install("good")
    with pytest.raises(AssertionError, match="foreign code has run"):
        cage.run("plugins", "list")
    assert os.environ["PWNED"] == str(cage.pwned)
