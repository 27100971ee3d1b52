from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("core_test_components", Path(__file__).with_name("components.py"))
components = importlib.util.module_from_spec(_spec)
sys.modules["core_test_components"] = components
_spec.loader.exec_module(components)


@pytest.fixture
def registry():
    return components.registry()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a strategy into the working folder and give back its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMAFARM_HOME", str(tmp_path / "home"))

    def write(text, name="s.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return name

    return write
