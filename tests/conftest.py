"""Set up before anything is imported: one thread, no network, no setting of the user's own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported; more threads only fight on two cores
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PYTHONHASHSEED"] = os.environ.get("PYTHONHASHSEED", "random")

# what a shell starts in the background ignores Ctrl-C, and what nohup starts a hang-up; so would processes of tests
for _name, _default in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if (_number := getattr(signal, _name, None)) is not None and signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _default)


@pytest.fixture(autouse=True)
def _nobodys_settings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither LLAMAFARM_ variables nor strategies of the person who runs the tests matter."""
    for name in [name for name in os.environ if name.startswith("LLAMAFARM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LLAMAFARM_HOME", str(tmp_path_factory.getbasetemp() / "home"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).parents[1]
