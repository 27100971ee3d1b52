from __future__ import annotations

import io
import sys
from dataclasses import dataclass

import pytest

from llamafarm.cli import main


@dataclass(frozen=True)
class Ended:
    """How an invocation ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """Run the program in this process, in an empty folder, with nobody's settings."""
    monkeypatch.chdir(tmp_path)
    for name in ("LLAMAFARM_DEBUG", "FORCE_COLOR", "CI", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("LLAMAFARM_HOME", str(tmp_path / ".home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ".state"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / ".hf"))

    def run(*argv: str, stdin: str = "") -> Ended:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(argv))
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return run
