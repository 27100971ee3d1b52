from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from llamafarm.cli.guard import run


@dataclass(frozen=True)
class Refusal:
    """What a user sees, and what is left on disk."""

    code: int
    shown: str
    before: Mapping[str, bytes]
    after: Mapping[str, bytes]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Refusal]:
    """Run a command in a folder with these files; nothing but its refusal may come of it."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def call(*argv: str, given: Mapping[str, str | bytes] | None = None) -> Refusal:
        for name, content in (given or {}).items():
            path = work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        before = files(work)
        capsys.readouterr()
        code = run(list(argv))
        captured = capsys.readouterr()
        assert captured.out == "", "a refusal is no result"
        assert "Traceback" not in captured.err
        return Refusal(int(code), captured.err, before, files(work))

    return call
