from __future__ import annotations

import sys

import pytest

from llamafarm.errors import PluginError, UsageError
from llamafarm.evaluation.scorers import corpus, known, scorer


@pytest.mark.parametrize(
    ("metric", "extract", "answer", "expected", "score"),
    [
        ("exact_match", None, " yes\n", "yes", 1),
        ("exact_match", None, "Yes", "yes", 0),
        ("json_valid", None, '{"a": 1}', "", 1),
        ("json_valid", None, '{"a": 1', "", 0),
        ("json_valid", r"\{.*\}", 'Sure: {"a": 1}', "", 1),
        ("json_valid", r"\{.*\}", "Sure.", "", 0),
        ("json_match", None, '{"b": 2, "a": 1}', '{"a":1,"b":2}', 1),
        ("json_match", None, '{"a": 1}', '{"a": 2}', 0),
        ("json_match", None, "no", "no", 0),
        ("json_match", r"\{.*\}", 'Done. {"a": 1}', 'OK. {"a": 1}', 1),
        ("extracted_match", r"answer is (\w+)", "I think the answer is B, because", "the answer is B", 1),
        ("extracted_match", r"answer is (\w+)", "I think the answer is B, because", "B", 1),
        ("extracted_match", r"answer is (\w+)", "the answer is C", "B", 0),
        ("extracted_match", r"answer is (\w+)", "B", "B", 0),
        ("extracted_match", r"\d+", "12 apples", "12 pears", 1),
    ],
)
def test_scores(metric, extract, answer, expected, score):
    assert scorer(metric, extract)(answer, expected) == score


def test_a_missing_or_broken_pattern_is_refused():
    with pytest.raises(UsageError, match="needs a pattern") as missing:
        scorer("extracted_match", None)
    with pytest.raises(UsageError, match="not a regular expression: missing") as broken:
        scorer("extracted_match", "(a")
    assert {error.value.problems[0].id for error in (missing, broken)} == {"LF-USAGE-031"}


def test_unknown_metrics_name_the_nearest():
    with pytest.raises(UsageError, match="no metric 'perplexty'") as caught:
        known(["loss", "perplexty"])
    assert (caught.value.problems[0].id, caught.value.problems[0].hint) == (
        "LF-USAGE-030",
        "did you mean 'perplexity'?",
    )


def test_corpus_metrics_are_sacrebleus():
    expected = ["the cat sat on the mat", "there is a dog in the garden"]
    assert corpus("bleu", expected, expected).value == pytest.approx(100)
    assert corpus("chrf", expected, expected).value == pytest.approx(100)
    figure = corpus("bleu", ["the cat sat on a mat", "there was a dog in the garden"], expected)
    assert 0 <= figure.low <= figure.value <= figure.high <= 100
    assert corpus("bleu", ["the cat sat on the mat"], expected[:1]).low is None


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(PluginError, match="sacrebleu, which is not installed") as caught:
        corpus("chrf", ["a"], ["a"])
    assert caught.value.problems[0].id == "LF-PLUGIN-060"
    assert "pip install 'llamafarm[evaluate]'" in caught.value.problems[0].hint
