"""A link that leads to itself is a path like any other that leads nowhere."""

from __future__ import annotations

import pytest


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "c", "output": "d"}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")


@pytest.mark.parametrize(
    "command",
    [
        "datasplit loop.jsonl --train-output a.jsonl --eval-output b.jsonl",
        "export --model loop --to merged --output x",
        "export --model builtin:tiny --to merged --output loop",
        "generate --model loop --prompt hello",
        "inspect --model builtin:tiny --dataset loop.jsonl",
        "inspect --model loop --dataset rows.jsonl",
        "check-data loop.jsonl",
        "validate loop.yaml",
        "train --strategy loop.yaml",
        "train --model builtin:tiny --dataset loop.jsonl --max-steps 1",
        "train --model loop --dataset rows.jsonl --max-steps 1",
        "train --model builtin:tiny --dataset rows.jsonl --max-steps 1 --output loop",
        "train --resume loop",
        "reproduce loop",
        "runs show loop",
        "evaluate --model loop --dataset rows.jsonl",
    ],
)
def test_it_is_refused(cli, rows, command):
    ended = cli(*command.split())
    assert ended.code in range(2, 12), ended.err
    assert "LF-INTERNAL" not in ended.err
    assert "loop" in ended.err


def test_an_output_takes_its_place(cli, rows, tmp_path):
    assert cli(*["datasplit", "rows.jsonl", "--train-output", "loop.jsonl", "--eval-output", "b.jsonl"]).code == 0
    assert (tmp_path / "loop.jsonl").read_text()
