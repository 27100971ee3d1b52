from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("argv", "stdin", "code", "message"),
    [
        (["hello"], "", 2, "neither --model nor --strategy is given"),
        (["hello", "-m", "a", "-s", "b"], "", 2, "both --model and --strategy are given"),
        (["-m", "model"], "", 2, "the prompt is empty: nothing came from stdin"),
        (["-m", "model", "--prompt", "-"], "\n", 2, "the prompt is empty"),
        (["hello", "--prompt", "hello", "-m", "model"], "", 2, "the prompt as an argument and --prompt exclude each"),
        (["hello", "--system", "be", "--raw", "-m", "model"], "", 2, "--system and --raw exclude each other"),
        (["hello", "--stream", "--json", "-m", "model"], "", 2, "--stream and --json exclude each other"),
        (["hello", "-m", "model", "--save", "there.txt"], "", 2, "there.txt exists already"),
        (["hello", "-m", "model", "--temperature", "-1"], "", 2, "--temperature / -t: "),
        (["hello", "-m", "model", "--max-tokens", "0"], "", 2, "--max-tokens / --max-new-tokens: "),
        (["hello", "-m", "./modle"], "", 4, "did you mean 'model'?"),
        (["hello", "-m", "builtin:tny"], "", 4, "no built-in model 'tny'"),
        (["hello", "-m", "there.txt"], "", 4, "is a file, not a model folder"),
        (["hello", "-s", "nope"], "", 2, "unknown strategy 'nope'"),
    ],
)
def test_bad_input_is_said_before_anything_is_loaded(cli, tmp_path, argv, stdin, code, message):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "there.txt").write_text("mine")
    ended = cli("generate", *argv, stdin=stdin)
    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err
    assert (tmp_path / "there.txt").read_text() == "mine"
