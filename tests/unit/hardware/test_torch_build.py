from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from llamafarm_hardware import torch_build as module
from llamafarm_hardware.torch_build import TorchBuild, torch_build

PROBE_ALL = """
import sys
from llamafarm.api import NoConfig
from llamafarm_hardware.hooks import llamafarm_hardware_profiles
for profile in llamafarm_hardware_profiles():
    assert profile(NoConfig()).probe().reason
sys.exit(", ".join({"torch", "transformers", "numpy"} & set(sys.modules)) or None)
"""


def install(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "version.py").write_text(text)
    monkeypatch.setattr(module, "find_spec", lambda _: SimpleNamespace(origin=str(folder / "__init__.py")))


def test_a_cuda_build_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"nvidia-cudnn-cu12": "9.10.2.21"}
    monkeypatch.setattr(module, "version", versions.__getitem__)
    install(tmp_path, "__version__ = '2.13.0+cu126'\ncuda: str | None = '12.6'\nhip = None\n", monkeypatch)
    assert torch_build() == TorchBuild("2.13.0+cu126", "12.6", "9.10.2.21")


def test_a_cudnn_that_is_no_package_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", absent)
    install(tmp_path, "__version__ = '2.13.0'\ncuda = '13.0'\n", monkeypatch)
    assert torch_build() == TorchBuild("2.13.0", "13.0", "")


def test_no_torch_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    assert torch_build() is None


def test_the_installed_torch_says_the_same_of_itself() -> None:
    import torch

    found = torch_build()
    assert found is not None
    assert (found.version, found.cuda) == (torch.__version__, torch.version.cuda or "")


def test_probing_imports_nothing_heavy() -> None:
    subprocess.run([sys.executable, "-c", PROBE_ALL], check=True)
