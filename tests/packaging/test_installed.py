"""LlamaFarm from its wheel, in an empty folder: what a user has who never saw the repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging


def test_the_code_comes_from_the_wheel(installed, tmp_path: Path) -> None:
    code = "import llamafarm, llamafarm_methods; print(llamafarm.__file__); print(llamafarm_methods.__file__)"
    finished = installed.run("python", "-c", code, cwd=tmp_path)
    assert all(Path(line).is_relative_to(installed.folder) for line in finished.stdout.split()), finished


def test_help(installed, tmp_path: Path) -> None:
    finished = installed.llamafarm("--help", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "train" in finished.stdout
    module = installed.run("python", "-m", "llamafarm", "--help", cwd=tmp_path)
    assert module.returncode == 0
    assert "train" in module.stdout


def test_presets_are_found_and_valid(installed, tmp_path: Path) -> None:
    listed = installed.llamafarm("strategies", "list", cwd=tmp_path)
    assert "quickstart" in listed.stdout, listed
    finished = installed.llamafarm("validate", "quickstart", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_built_in_plugins_are_listed(installed, tmp_path: Path) -> None:
    finished = installed.llamafarm("plugins", "list", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    for name in ("pytorch", "lora", "full", "cuda", "mps", "cpu", "hash", "random"):
        assert name in finished.stdout


def test_an_error_is_one_even_from_a_wheel(installed, tmp_path: Path) -> None:
    finished = installed.llamafarm("validate", "quickstrat", cwd=tmp_path)
    assert finished.returncode == 2
    assert "did you mean 'quickstart'?" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_quickstart(installed, tmp_path: Path) -> None:
    short = ["--max-steps", "60", "--set", "evaluation.max_samples=20"]  # tests/e2e/test_presets.py trains all of it
    finished = installed.llamafarm("train", "--strategy", "quickstart", *short, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    output = tmp_path / "output" / "quickstart"
    assert json.loads((output / "llamafarm" / "manifest.json").read_text())["status"] == "completed"
    asked = ["generate", "--model", str(output), "--prompt", "Set the floor lamp in the kitchen to 40 percent"]
    answered = installed.llamafarm(*asked, cwd=tmp_path)
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout.strip()
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
