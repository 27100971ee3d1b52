"""A cage for hostile input: its own home and working folder, canaries, and a record of every socket."""

from __future__ import annotations

import io
import json
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llamafarm.cli.guard import run

LOOPBACK = ("127.", "::1", "localhost")


@dataclass
class Cage:
    """Where an artefact is tried, and what it must not touch.

    Attributes:
        root: Everything below is the cage; `work` is the working folder, `home` the home folder.
        sockets: Addresses outside this machine that somebody wanted.
        shown: What the last command wrote, stdout and stderr together.
    """

    root: Path
    capture: pytest.CaptureFixture[str]
    sockets: list[Any] = field(default_factory=list)
    shown: str = ""

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def pwned(self) -> Path:
        """Whatever runs code writes this file."""
        return self.root / "PWNED"

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def run(self, *argv: str) -> int:
        """Run a command; whatever it does, no code of others has run and nothing has left this machine."""
        self.capture.readouterr()
        before = self.outside()
        code = int(run(list(argv)))
        captured = self.capture.readouterr()
        self.shown = captured.out + captured.err
        assert not self.pwned.exists(), "foreign code has run"
        assert self.sockets == [], "something was sent"
        assert "Traceback" not in self.shown
        assert code != 1, f"a defect: {self.shown}"
        assert self.outside() == before, "something was written outside the working folder"
        return code

    def outside(self) -> dict[str, bytes]:
        """Files of the cage that no run may change."""
        folders = (self.home, self.root / "elsewhere")
        own = self.home / ".state"
        return {
            str(path): path.read_bytes()
            for folder in folders
            for path in folder.rglob("*")
            if path.is_file() and not path.is_relative_to(own)
        }


@pytest.fixture
def cage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cage:
    made = Cage(tmp_path / "cage", capsys)
    for folder in (made.work, made.home / ".ssh", made.root / "elsewhere"):
        folder.mkdir(parents=True)
    (made.home / ".ssh" / "id_rsa").write_text("CANARY-PRIVATE-KEY", encoding="utf-8")
    (made.root / "elsewhere" / "secret.txt").write_text("CANARY-ELSEWHERE", encoding="utf-8")
    monkeypatch.setenv("HOME", str(made.home))
    monkeypatch.setenv("XDG_STATE_HOME", str(made.home / ".state"))
    monkeypatch.setenv("LLAMAFARM_HOME", str(made.root / "llamafarm"))
    monkeypatch.setenv("PWNED", str(made.pwned))
    monkeypatch.chdir(made.work)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))

    def connect(self: socket.socket, address: Any, original: Any = socket.socket.connect) -> Any:
        if self.family != socket.AF_UNIX and not str(address[0]).startswith(LOOPBACK):
            made.sockets.append(address)
            raise OSError("no network in the cage")
        return original(self, address)

    def resolve(host: Any, *rest: Any, original: Any = socket.getaddrinfo, **named: Any) -> Any:
        if host is not None and not str(host).startswith(LOOPBACK):
            made.sockets.append(host)
            raise OSError("no network in the cage")
        return original(host, *rest, **named)

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return made


@pytest.fixture
def model(cage: Cage, tiny_model_dir: Callable[[str], Path]) -> Callable[..., Path]:
    """Make a copy of a good model in the cage, with some of its JSON files changed."""

    def make(**changed: Mapping[str, Any]) -> Path:
        folder = cage.work / "model"
        shutil.copytree(tiny_model_dir("llama"), folder)
        for name, values in changed.items():
            path = folder / f"{name}.json"
            path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")
        return folder

    return make


@pytest.fixture
def strategy(cage: Cage) -> Callable[..., Path]:
    """Write a strategy whose fine-tuner has this configuration, over one that works."""

    def write(config: Mapping[str, Any] | None = None, **top: Any) -> Path:
        rows = [{"instruction": f"Say {number}", "output": f"{number}"} for number in range(8)]
        cage.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        good = {
            "base_model": "builtin:tiny",
            "dataset": "rows.jsonl",
            "method": "lora",
            "training": {"max_steps": 1, "batch_size": 2, "save_strategy": "no"},
            "output_dir": "out",
        }
        tuner = {"type": "pytorch", "config": good | dict(config or {})}
        text = json.dumps({"name": "hostile", "components": {"fine_tuner": tuner}} | top)  # JSON is YAML
        return cage.write("strategy.yaml", text)

    return write
