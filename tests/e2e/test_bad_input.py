"""Bad input: where it stands, what was expected, the nearest name, the exit code; no traceback, nothing written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llamafarm.testing._tiny import build_model

pytestmark = pytest.mark.e2e
GOOD = '{"instruction": "Say a.", "output": "a"}\n{"instruction": "Say b.", "output": "b"}\n'


HEAD = "name: x\nfine_tuner:\n  type: pytorch\n  config:\n    base_model: base\n    dataset: data.jsonl\n"


def strategy(config: str = "", rest: str = "") -> str:
    return f"{HEAD}{config}{rest}"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    build_model("llama", folder / "base")
    (folder / "data.jsonl").write_text(GOOD, encoding="utf-8")
    (folder / "empty.jsonl").write_text("", encoding="utf-8")
    (folder / "broken.jsonl").write_text(GOOD + '{"instruction": "Say c.", "output"}\n', encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("text", "arguments", "code", "expected"),
    [
        pytest.param(
            strategy("    training: {learning_rat: 1}\n"),
            (),
            2,
            ["s.yaml:7:16: unknown key 'learning_rat'", "did you mean 'learning_rate'?"],
            id="typo-in-a-key",
        ),
        pytest.param(
            strategy("    training: {batch_size: many}\n"),
            (),
            2,
            ["s.yaml:7:28: training.batch_size must be a whole number, got 'many'"],
            id="wrong-type",
        ),
        pytest.param(
            strategy("    method: lorra\n"),
            (),
            2,
            ["s.yaml:7:13: unknown method 'lorra'", "installed:", "did you mean 'lora'?"],
            id="unknown-component",
        ),
        pytest.param(
            strategy("    training:\n      seed: 1\n      seed: 2\n"),
            (),
            2,
            ["s.yaml:9:7: the key 'seed' stands twice", "1 (at s.yaml:8:7), 2"],
            id="duplicate-key",
        ),
        pytest.param(
            strategy("    output_dir: ${NOT_SET_ANYWHERE}\n"),
            (),
            2,
            ["s.yaml:7:17: the environment variable NOT_SET_ANYWHERE is not set"],
            id="unset-variable",
        ),
        pytest.param(strategy(), ("--dataset", "dta.jsonl"), 3, ["dta.jsonl", "data.jsonl"], id="missing-file"),
        pytest.param(strategy(), ("--dataset", "empty.jsonl"), 3, ["empty.jsonl", "no rows"], id="empty-dataset"),
        pytest.param(strategy(), ("--dataset", "broken.jsonl"), 3, ["broken.jsonl:3"], id="invalid-json"),
        pytest.param(
            strategy().replace("base_model: base", "base_model: ./bse"),
            (),
            4,
            ["s.yaml:5:17: no such model folder: ./bse", "did you mean 'base'?"],
            id="no-such-model-folder",
        ),
        pytest.param(
            strategy("    method: {type: lora, target_modules: [q_prj]}\n"),
            (),
            4,
            ["q_prj", "q_proj"],
            id="target-modules-that-match-nothing",
        ),
        pytest.param(
            strategy("    method: lorra\n    training: {seed: x, bach_size: 2}\n", "nmae: y\n"),
            ("--set", "training.nope=1"),
            2,
            ["s.yaml:7:13", "s.yaml:8:22", "s.yaml:8:25", "s.yaml:9:1", "--set training.nope"],
            id="all-at-once",
        ),
    ],
)
def test_bad_input(project: Path, root: Path, text: str, arguments: tuple[str, ...], code: int, expected: list[str]):
    (project / "s.yaml").write_text(text, encoding="utf-8")
    before = sorted(project.rglob("*"))
    command = [sys.executable, str(root / "cli.py"), "train", "--strategy", "s.yaml", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    for part in expected:
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert sorted(project.rglob("*")) == before, "nothing is written"
