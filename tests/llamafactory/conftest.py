"""Runs of the real LLaMA-Factory: skipped, with the reason, where it is not set up.

`make test-llamafactory` sets it up and runs these. `LLAMAFACTORY_HOME` names the folder that holds the backend
(`LLAMAFARM_HOME` of `llamafarm backends setup`), because tests never look at a user's own.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamafarm.api import Backend, Installed, installed
from llamafarm_tuners.llamafactory.environment import BACKEND, PPO


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.llamafactory)
            item.add_marker(pytest.mark.timeout(1800))  # on a busy machine; by itself a run takes half a minute


@pytest.fixture(autouse=True)
def backend(_nobodys_settings: None, monkeypatch: pytest.MonkeyPatch):
    """The backend that was set up."""
    home = os.environ.get("LLAMAFACTORY_HOME")
    if not home:
        pytest.skip("LLaMA-Factory is not set up for tests: run `make test-llamafactory`")
    monkeypatch.setenv("LLAMAFARM_HOME", home)
    return _installed(BACKEND, home)


@pytest.fixture
def ppo(backend: Installed) -> Installed:
    """The backend of stage ppo."""
    return _installed(PPO, os.environ["LLAMAFARM_HOME"])


def _installed(backend: Backend, home: str) -> Installed:
    state = installed(backend)
    if state is None:
        pytest.skip(f"no backend {backend.name} in {home}: run `make test-llamafactory`")
    return state
