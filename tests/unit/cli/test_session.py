from __future__ import annotations

import io
import json

import pytest

from llamafarm.cli.session import Session


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("environment", "terminal", "pipe", "live"),
    [
        ({}, True, False, True),
        ({"TERM": "dumb"}, False, False, False),
        ({"NO_COLOR": "1"}, False, False, True),
        ({"NO_COLOR": ""}, True, False, True),
        ({"FORCE_COLOR": "1"}, True, True, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False, True),
        ({"CI": "true"}, True, False, False),
    ],
)
def test_colour_and_redrawing_follow_the_terminal_and_the_environment(environment, terminal, pipe, live):
    session = Session((), environment)
    assert session.colour(Terminal()) is terminal
    assert session.colour(io.StringIO()) is pipe
    assert session.live(Terminal()) is live
    assert session.live(io.StringIO()) is False


def test_results_and_the_rest_go_different_ways(capsys):
    session = Session((), {})
    session.result("a result")
    session.notice("a notice")
    session.warning("a warning")
    captured = capsys.readouterr()
    assert captured.out == "a result\n"
    assert captured.err == "note: a notice\nwarning: a warning\n"


def test_json_is_strict(capsys):
    Session((), {}).result_json({"a": float("nan"), "b": [1.5, float("inf")], "c": True, "d": None, "e": "ö"})
    text = capsys.readouterr().out
    assert json.loads(text) == {"a": None, "b": [1.5, None], "c": True, "d": None, "e": "ö"}
    assert "ö" in text


def test_signs_are_ascii_where_the_terminal_knows_no_more(monkeypatch):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="latin-1")
    monkeypatch.setattr("sys.stdout", stream)
    Session((), {}).result("✓ 1 → 2")
    stream.flush()
    assert raw.getvalue() == b"+ 1 > 2\n"
