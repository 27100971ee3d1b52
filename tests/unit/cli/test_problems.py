from __future__ import annotations

import pytest

from llamafarm.cli.problems import show_problems
from llamafarm.cli.session import Session
from llamafarm.errors import Problem


@pytest.fixture
def shown(capsys):
    def show(*problems, **environment):
        show_problems(Session((), {"NO_COLOR": "1", **environment}), problems)
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    return show


def test_a_place_in_a_yaml_file_is_shown_with_a_caret(shown, tmp_path):
    path = tmp_path / "support.yaml"
    path.write_text("name: x\nmethod:\n  rank: 16\n")
    problem = Problem("LF-STRATEGY-021", "unknown key 'rank'", f"{path}:3:3", "did you mean 'r'?")
    assert shown(problem) == (
        f"error: {path}:3:3: unknown key 'rank'; did you mean 'r'? [LF-STRATEGY-021]\n    3 |   rank: 16\n      |   ^\n"
    )


def test_the_caret_stands_right_below_tabs(shown, tmp_path):
    path = tmp_path / "s.yml"
    path.write_text("\t\tkey: 1\n")
    assert shown(Problem("X", "m", f"{path}:1:3")).splitlines()[-1] == "      | \t\t^"


@pytest.mark.parametrize("where", ["", "--set a.b", "gone.yaml:3:1", "s.yaml:99:1", "s.yaml", "rows.jsonl:1:2"])
def test_without_a_line_to_show_there_is_the_message_alone(shown, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text("a: 1\n")
    (tmp_path / "rows.jsonl").write_text('{"private": "row"}\n')
    text = shown(Problem("X", "m", where))
    assert text.count("\n") == 1
    assert "private" not in text


def test_a_secret_in_the_line_stays_secret(shown, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("hub_tokn: hf_abcdefghijklmnop\ntoken: my own words\nplain: from-the-environment\n")
    text = shown(
        Problem("X", "unknown key", f"{path}:1:1"),
        Problem("X", "m", f"{path}:2:1"),
        Problem("X", "m", f"{path}:3:1"),
        MY_API_KEY="from-the-environment",
    )
    for secret in ("hf_abc", "my own words", "from-the-environment"):
        assert secret not in text
    assert text.count("[redacted]") == 3


def test_input_cannot_drive_the_terminal(shown, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("key: '\x1b[2J\x07'\n")
    text = shown(Problem("X", "got '\x1b]0;title\x07'", f"{path}:1:1"))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert r"\x1b[2J" in text


def test_a_line_without_end_is_cut(shown, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("k: " + "x" * 100_000)
    text = shown(Problem("X", "m", f"{path}:1:90000"))
    assert len(text) < 400
